"""Lists, arrays, series, columns and frames of any package -> cells, one for each row.

No package is imported to find out whether a value is one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from ytuning.data.labels import quote
from ytuning.errors import InputError

__all__ = ["as_cells", "frame_columns", "is_a"]


def is_a(value: object, package: str, *names: str) -> bool:
    """Whether a value is an instance of one of a package's classes."""
    return any(base.__name__ in names and base.__module__.partition(".")[0] == package for base in type(value).__mro__)


def frame_columns(values: Any) -> list[tuple[str, list[object]]] | None:
    """Names and cells of the columns of a frame or a table; None of anything else.

    A frame is a ``DataFrame`` of pandas or polars, a ``Table`` or ``RecordBatch`` of pyarrow, or a
    ``datasets.Dataset``.
    """
    if is_a(values, "pandas", "DataFrame"):
        columns = [values.iloc[:, place].tolist() for place in range(values.shape[1])]
        return list(zip(map(str, values.columns), columns, strict=True))
    if is_a(values, "polars", "DataFrame"):
        return [(column.name, column.to_list()) for column in values.get_columns()]
    if is_a(values, "pyarrow", "Table", "RecordBatch"):
        return [(name, values.column(place).to_pylist()) for place, name in enumerate(values.schema.names)]
    if is_a(values, "datasets", "Dataset"):
        plain = values.with_format(None)
        return [(name, list(plain[name])) for name in plain.column_names]
    return None


def as_cells(values: Any, name: str) -> list[object]:
    """The values of a list, array, series, column or other iterable, one for each row.

    A frame or an array (rows, 1) is one column, and gives its cells. A frame or an array (rows, columns) gives its rows
    as tuples or lists.

    Raises:
        InputError: ``values`` is a single value or has no order of rows; the message calls it ``name``.
    """
    columns = frame_columns(values)
    if columns:
        return columns[0][1] if len(columns) == 1 else list(zip(*(cells for _, cells in columns), strict=True))
    if (remedy := _remedy(values)) is not None:
        _refuse(values, name, remedy)
    if hasattr(values, "tolist"):
        return _rows_of(values, name)
    # Columns of pyarrow and of polars, whose own iterators give other objects than Python's.
    for method in ("to_pylist", "to_list"):
        if hasattr(values, method):
            return list(getattr(values, method)())
    return list(values)


def _remedy(values: Any) -> str | None:
    """What to give in place of a value that is not one list of rows; None for one that is."""
    has_list = hasattr(values, "tolist")
    remedies = (
        (isinstance(values, str | bytes | bytearray), "Put a single text in a list."),
        (isinstance(values, Mapping), "Give one of its values."),
        (isinstance(values, set | frozenset), "A set has no order of rows."),
        (hasattr(values, "compute"), "Compute it first with .compute()."),
        # Frames of other packages, frames that have not been computed, and frames without columns.
        (hasattr(values, "columns"), "Give one of its columns as a list."),
        (hasattr(values, "toarray"), "Make an array of a sparse matrix with .toarray()."),
        (hasattr(values, "numpy") and not has_list, "Make an array of a tensor with .numpy()."),
        (not isinstance(values, Iterable) and not has_list, ""),
    )
    return next((remedy for applies, remedy in remedies if applies), None)


def _rows_of(values: Any, name: str) -> list[object]:
    """The rows of an array or a series."""
    cells = values.tolist()
    dimensions = getattr(values, "ndim", 1)
    if not isinstance(cells, list) or dimensions > 2:
        _refuse(values, name, f"Its shape is {tuple(getattr(values, 'shape', ()))}.")
    if dimensions == 2 and cells and len(cells[0]) == 1:
        return [row[0] for row in cells]
    return cells


def _refuse(values: object, name: str, remedy: str) -> NoReturn:
    kind = type(values)
    given = quote(values) if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    raise InputError(f"{name} must be a list, an array or a series. Got {given} instead. {remedy}".rstrip())
