"""Validation rows: chosen from train rows, in the shares of their labels."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np

from ytuning.data import Dataset, labels_of
from ytuning.errors import DataError, InputError
from ytuning.labels import LabelSet

__all__ = ["split_holdout"]

FEWEST_IN_QUANTILE = 4  # rows, or none of them could be spared
FEWEST_WORDS = 4  # of a text that counts as a part of another; shorter ones are anybody's
MANY_PARTS, ENOUGH = 0.01, 0.5  # shares: of texts that are parts of others; of the rows that could else be held out
QUANTILES = 10  # of a regression's numbers, each of which gives its share of the validation rows


def split_holdout(
    dataset: Dataset, seed: int, fraction: float = 0.1, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose validation rows from train rows, stratified by label; the same for the same rows and seed.

    A row of several labels stands for its rarest one, a number for the tenth of the rows that it is in.
    About ``fraction`` of the rows are held out, at least one. Every label keeps a train row, and every label with two
    or more different inputs gets a validation row if there is room for one of each. Rows with exactly the same input
    stay together, so that no validation row was seen in training; where only such a group can stand for a label, more
    than ``fraction`` may be held out, but never more than ``most``. So do texts that are a run of words of another one
    (phrases of a sentence, a quoted mail), if there are many and enough rows can be held out then: on what it has seen
    in part a head is far too sure, and validation would not tell.

    Args:
        dataset: with labels.
        seed: chooses the rows.
        fraction: of the rows to hold out, between 0 and 1.
        most: rows to hold out at most.

    Returns:
        Indices of the train rows and of the validation rows, each (rows,) int64 and sorted.

    Raises:
        DataError: no row can be held out.
        InputError: ``fraction`` or ``most`` is out of range.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction must be between 0 and 1. Got {fraction!r} instead.")
    if most is not None and most < 1:
        raise InputError(f"most must be 1 or more. Got {most!r} instead.")
    ids = _strata(dataset)
    by_input: dict[tuple[str, str | None], list[int]] = {}
    for index, row in enumerate(dataset.inputs):
        by_input.setdefault(row, []).append(index)
    groups = list(by_input.values())
    most = most or len(ids)
    target = min(max(1, round(fraction * len(ids))), most)
    also = _label_ids(dataset) if dataset.kind == "multi" else None
    held = _hold_out(groups, ids, seed, target, most, also)
    if dataset.text_pairs is None and (whole := _with_parts([text for text, _ in by_input], groups)):
        apart = _hold_out(whole, ids, seed, target, most, also)
        same_labels = {ids[row] for row in apart} >= {ids[row] for row in held}
        held = apart if same_labels and len(apart) >= ENOUGH * len(held) else held
    if not held:
        problem = "no row can be held out for validation, as each label needs another, different row to train on. "
        raise DataError(f"{problem}Add rows or give a validation file (--validation)", source=dataset.source)
    return np.delete(np.arange(len(ids)), held), np.array(sorted(held), np.int64)


def _with_parts(texts: list[str], groups: list[list[int]]) -> list[list[int]]:
    """Groups of rows, each with those of the texts that are a run of words of its text; none if these are few."""
    whole = _wholes(texts)
    if _share_of_parts(whole) < MANY_PARTS:
        return []
    together: dict[int, list[int]] = {}
    for number, rows in enumerate(groups):
        together.setdefault(whole[number], []).extend(rows)
    return list(together.values())


def _wholes(texts: list[str]) -> list[int]:
    """For each text the number of the one that it is a run of words of, its own if there is none.

    A part of several texts goes with the longest of them: else whatever people often say would tie all rows together.
    """
    # Words are split anew and found by their hashes: those of all texts would take several times the memory of these.
    counts = [len(text.split()) for text in texts]
    by_start: dict[int, set[int]] = {}  # lengths of the texts that start with these words
    by_words: dict[int, int] = {}
    for number, text in enumerate(texts):
        if counts[number] >= FEWEST_WORDS:
            own = text.split()
            by_start.setdefault(hash(tuple(own[:FEWEST_WORDS])), set()).add(len(own))
            by_words.setdefault(hash(tuple(own)), number)
    whole = list(range(len(texts)))
    for number in sorted(whole, key=lambda number: -counts[number]):
        own = texts[number].split()
        for start in range(len(own) - FEWEST_WORDS + 1):
            for length in by_start.get(hash(tuple(own[start : start + FEWEST_WORDS])), ()):
                if length > len(own) - start or length == len(own):
                    continue
                run = own[start : start + length]
                part = by_words.get(hash(tuple(run)))
                if part is not None and whole[part] == part and texts[part].split() == run:
                    whole[part] = whole[number]
    return whole


def _share_of_parts(whole: list[int]) -> float:
    return sum(each != number for number, each in enumerate(whole)) / len(whole)


def _strata(dataset: Dataset) -> list[int]:
    """For each row the number of what it stands for in a stratified choice."""
    labels = labels_of(dataset)
    if dataset.kind == "regression":
        numbers = np.array(labels, np.float64)
        parts = max(1, min(QUANTILES, len(numbers) // FEWEST_IN_QUANTILE))
        inner = np.unique(np.quantile(numbers, np.linspace(0, 1, parts + 1)[1:-1]))
        return cast("list[int]", np.unique(np.searchsorted(inner, numbers), return_inverse=True)[1].tolist())
    if dataset.kind == "multi":
        rows = cast("Sequence[tuple[str, ...]]", labels)
        counts = Counter(name for row in rows for name in row)
        rarest = [min(row, key=lambda name: (counts[name], name), default="") for row in rows]
        numbered = {name: number for number, name in enumerate(sorted(set(rarest)))}
        return [numbered[name] for name in rarest]
    names = [str(label) for label in labels]
    return cast("list[int]", LabelSet.from_labels(names).encode(names).tolist())


def _label_ids(dataset: Dataset) -> list[list[int]]:
    """Of each row of several labels the numbers of all of them."""
    rows = cast("Sequence[tuple[str, ...]]", labels_of(dataset))
    numbers = {name: number for number, name in enumerate(sorted({name for row in rows for name in row}))}
    return [[numbers[name] for name in row] for row in rows]


def _hold_out(
    groups: list[list[int]], ids: list[int], seed: int, target: int, most: int, also: list[list[int]] | None
) -> list[int]:
    """Rows of whole groups: first at random within each label's quota, then whatever stands for a label left out.

    ``ids`` are what rows stand for, ``also`` are all their labels, where they may have several: each keeps a row.
    """
    counts = np.bincount(ids).tolist()
    inputs = np.bincount([i for group in groups for i in {ids[row] for row in group}]).tolist()
    spare = [count - 1 if different > 1 else 0 for count, different in zip(counts, inputs, strict=True)]
    quotas = _apportion(counts, spare, target)
    taken = [0] * len(counts)
    held: list[int] = []
    left = Counter(label for labels in also or () for label in labels)

    def take(group: list[int], limits: Sequence[int]) -> None:
        """Hold a group out if no label gets beyond its limit or loses its last row."""
        for row in group:
            taken[ids[row]] += 1
        lost: Counter[int] = Counter(label for row in group for label in also[row]) if also else Counter()
        within = all(taken[ids[row]] <= limits[ids[row]] for row in group)
        if len(held) + len(group) <= most and within and all(count < left[label] for label, count in lost.items()):
            held.extend(group)
            left.subtract(lost)
        else:
            for row in group:
                taken[ids[row]] -= 1

    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    for group in order:
        take(group, quotas)
    keep_one = [count - 1 for count in counts]
    for group in sorted(order, key=len):
        if not held or any(quotas[ids[row]] and not taken[ids[row]] for row in group):
            take(group, keep_one)
    return held


def _apportion(counts: list[int], spare: list[int], total: int) -> list[int]:
    """Share ``total`` rows among labels in proportion to their ``counts``, at most ``spare`` for each.

    Sainte-Laguë's method, one row at a time to the label with the largest count / (2 * rows so far + 1), after one row
    for each label if there are enough.
    """
    able = [label for label, room in enumerate(spare) if room]
    quotas = [0] * len(counts)
    if total >= len(able):
        for label in able:
            quotas[label] = 1
    queue = [(-counts[label] / (2 * quotas[label] + 1), label) for label in able if quotas[label] < spare[label]]
    heapq.heapify(queue)
    for _ in range(total - sum(quotas)):
        if not queue:
            break
        label = heapq.heappop(queue)[1]
        quotas[label] += 1
        if quotas[label] < spare[label]:
            heapq.heappush(queue, (-counts[label] / (2 * quotas[label] + 1), label))
    return quotas
