"""The plan of a run: the order of its units."""

from __future__ import annotations

from ytuning.batch.inputs import Part
from ytuning.batch.plan import Unit, largest_first


def test_units_come_in_any_order_but_the_small_ones_last() -> None:
    """Parts of Parquet are counted in rows and others in bytes, so only those of one format are compared."""
    sizes = [100, 7, 120, 3, 110, 101]
    paths = [*["rows.jsonl"] * 6, *["rows.parquet"] * 6]
    units = [
        Unit(number, f"part-{number}", path, Part(0, size if number < 6 else 10 * size))
        for number, (path, size) in enumerate(zip(paths, [*sizes, *sizes], strict=True))
    ]
    orders = {tuple(unit.number for unit in largest_first(units)) for _ in range(100)}
    assert len(orders) > 1
    for order in orders:
        assert set(order[:8]) == {0, 2, 4, 5, 6, 8, 10, 11}
        assert [set(order[8:10]), set(order[10:])] == [{1, 7}, {3, 9}]
