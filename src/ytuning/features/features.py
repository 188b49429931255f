"""Texts -> token features, computing only what the store lacks."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Encoder
from ytuning.encoder.tokens import padded_places, plan_batches
from ytuning.errors import StoreError
from ytuning.features.codecs import (
    DEFAULT_CODEC,
    Codec,
    Decoder,
    Float16Codec,
    PcaCoordinates,
    PcaInt8Codec,
    ProjectedReader,
    Selected,
)
from ytuning.features.store import FeatureSpace, FeatureStore, StoredRows, text_key
from ytuning.heads.pairs import PairMode
from ytuning.progress import Progress

__all__ = [
    "CacheUse",
    "Features",
    "TextFeatures",
    "keep_features",
    "live_features",
    "ordered_batches",
    "stored_features",
]

# A shard is written when it holds this many bytes, so a killed run loses no more than them.
SHARD_BYTES = 256 << 20
# The first shard of a run is small and the next ones double, so a short run that is killed loses about half.
FIRST_SHARD_BYTES = 4 << 20
# So many texts are tokenised and sorted by length at a time. Memory then does not grow with the data.
WINDOW_TEXTS = 16_384
# Tokens of a batch when stored features are written again in another codec.
COPIED_TOKENS = 4096
# Tokens that are copied to a GPU at a time, where they have to be gathered first.
CHUNK_TOKENS = 65_536
# They are gathered where runs of neighbours in the store are shorter than this on average: many small copies
# would take longer than one gather.
FEWEST_RUN_TOKENS = 2048
CPU = torch.device("cpu")
# After so many gathered bytes the store's pages are let go of, because a page brings in its neighbours and
# resident memory would grow to the size of the store.
RESIDENT_BYTES = 48 << 20
# Batches are padded to a multiple of so many tokens: in bfloat16 oneDNN computes, which compiles, and keeps in memory,
# every shape that it meets. In float32 another library does, and padding would only cost time.
LENGTH_STEP = {torch.bfloat16: 4, torch.float32: 1}
# A basis is fitted on so many tokens; that of a space on texts spread evenly over the first ones.
FIT_TOKENS = 50_000
# With fewer tokens for each component than this, the basis may fit other texts badly, and a warning says so.
FEWEST_FIT_TOKENS = 10
# Bytes that are read at once from a store larger than the memory: one seek for many rows.
BLOCK_BYTES = 256 << 10
WAITING = "waiting for another process that encodes with this encoder"
OTHER_BASIS = (
    "the store's compact features have another basis than the task's, so these texts are read again and not stored"
)
# What was just written is read back so many times before the disk is called bad.
ATTEMPTS = 3

Batches = Iterator[tuple[np.ndarray, np.ndarray]]
Source = Callable[[np.ndarray, Codec | None], tuple[np.ndarray, np.ndarray, Batches]]
"""Positions of texts (N,) -> their token counts (N,), whether each was cut (N,), and batches as of Encoder.encode, in a
codec where one is given."""


@dataclass(frozen=True)
class CacheUse:
    """How a data set met the store.

    Attributes:
        hits: distinct texts that were stored.
        misses: distinct texts that the encoder had to read.
        bytes: that the features of all of them take in the store, without the 4 * R * L * D of a compact space's basis.
    """

    hits: int
    misses: int
    bytes: int


class Features(Protocol):
    """Frozen token features of the rows of a data set: what training and answering read, batch by batch.

    :class:`TextFeatures` has a text, or a pair that was encoded as one text, in each row; `pairs.PairFeatures` has two
    texts.

    Attributes:
        lengths: (rows,) int64 tensor; tokens of each row.
        truncated_rows: (rows,) bool array; whether the row's text was cut at the encoder's maximum length.
        layers: L, hidden states kept of each token.
        width: D, size of a hidden state.
        device: where batches are.
        is_resident: whether they are those of :meth:`resident`.
        pair_mode: ``"separate"`` if a row is a pair of texts that were encoded separately, else None.
        codec: what stored bytes are decoded with.
    """

    lengths: torch.Tensor
    truncated_rows: np.ndarray
    layers: int
    width: int
    device: torch.device
    is_resident: bool
    pair_mode: PairMode | None
    codec: Decoder

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def bytes_of(self, rows: torch.Tensor) -> int:
        """What rows (N,) take where they lie."""
        ...

    def at_positions(self, positions: Sequence[int]) -> Features:
        """The same rows, of each token only the hidden states at these positions among the L."""
        ...

    def recoded(self, codec: Codec) -> Features:
        """The same rows in memory in another codec."""
        ...

    def resident(self, rows: torch.Tensor, device: torch.device) -> Features:
        """The same features in a device's memory, of rows (N,) only."""
        ...

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Rows (N,) in runs of neighbours in the store."""
        ...

    def prefetch(self, block: torch.Tensor) -> None:
        """Ask the system to read a block of rows (N,) at once; only a hint."""
        ...

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, T, L, D) and mask (B, T) of rows (B,), or of separate pairs (2 * B, T, L, D) and (2 * B, T)."""
        ...

    def release(self) -> None:
        """Let go of the pages of the store that reading has brought into memory."""
        ...


class TextFeatures:
    """Features with one encoded text in each row, gathered from where they lie.

    Attributes:
        dtype: of the batches: bfloat16 where the encoder computed in it, which loses nothing more, else float32.
    """

    pair_mode: PairMode | None = None
    device = CPU
    is_resident = False

    def __init__(self, rows: StoredRows, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.codec: Decoder = rows.codec
        self._arrays = [torch.from_numpy(array) for array in rows.arrays]
        self._array, self._start = torch.from_numpy(rows.array), torch.from_numpy(rows.start)
        self._maps, self._gathered = rows.maps, 0
        self.lengths = torch.from_numpy(rows.length)
        self.truncated_rows = rows.truncated
        self.layers, self.width = rows.codec.layers, rows.codec.width

    def __len__(self) -> int:
        return len(self.lengths)

    def bytes_of(self, rows: torch.Tensor) -> int:
        """What rows (N,) take where they lie."""
        return int(self.lengths[rows].sum()) * self._arrays[0].shape[1]

    def seen_as(self, reader: Decoder) -> TextFeatures:
        """The same rows, decoded by another reader."""
        view = copy.copy(self)
        view.codec, view.layers, view.width = reader, reader.layers, reader.width
        return view

    def at_positions(self, positions: Sequence[int]) -> TextFeatures:
        """The same rows, of each token only the hidden states at these positions among the L (from 0, rising)."""
        chosen = tuple(positions)
        if not chosen or list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < self.layers:
            raise ValueError(f"positions must differ, rise and be from 0 to {self.layers - 1}. Got {list(chosen)}")
        if len(chosen) == self.layers:
            return self
        if isinstance(self.codec, Selected):
            return self.seen_as(Selected(self.codec.codec, tuple(self.codec.positions[each] for each in chosen)))
        # Readers of coordinates hold a single state, which has been returned above.
        assert not isinstance(self.codec, PcaCoordinates | ProjectedReader)
        return self.seen_as(Selected(self.codec, chosen))

    def recoded(self, codec: Codec) -> TextFeatures:
        """The same rows in memory in another codec: what a store in that codec would hold of them."""
        arrays = []
        for array in self._arrays:
            # (tokens, L, D), exactly what was stored: a codec gives the same bytes for float32 as for float16.
            values = self.codec.decode(array, torch.float32).unflatten(1, (self.layers, self.width))
            arrays.append(codec.encode(values).numpy())
        where = (self._array.numpy(), self._start.numpy(), self.lengths.numpy(), self.truncated_rows)
        return TextFeatures(StoredRows(arrays, *where, codec), self.dtype)

    def resident(self, rows: torch.Tensor, device: torch.device) -> TextFeatures:
        """The same features in a device's memory, of rows (N,) only: as many bytes as in the store."""
        ordered = self.in_order(rows)
        lengths = self.lengths[ordered]
        ends = lengths.cumsum(0)
        held = torch.empty(int(ends[-1]), self._arrays[0].shape[1], dtype=torch.uint8, device=device)
        # Rows that follow each other in the store, as those of one data set do, are copied from where they lie.
        array, start = self._array[ordered], self._start[ordered]
        apart = (array.diff() != 0) | (start.diff() != lengths[:-1])
        runs = list(ordered.tensor_split(apart.nonzero()[:, 0] + 1))
        gathered = len(runs) * FEWEST_RUN_TOKENS > len(held)
        first = 0
        for rows_there in _chunks(ordered, ends) if gathered else runs:
            place, tokens = int(self._start[rows_there[0]]), int(self.lengths[rows_there].sum())
            array_there = self._arrays[int(self._array[rows_there[0]])]
            stored = self._stored_tokens(rows_there) if gathered else array_there[place : place + tokens]
            held[first : first + tokens] = stored.to(device)
            first += tokens
        self.release()
        view = copy.copy(self)
        view.device, view._arrays, view._maps, view._gathered = device, [held], [], 0
        # Of other rows: out of bounds.
        view._start = torch.full((len(self),), len(held)).index_copy_(0, ordered, ends - lengths)
        view._array = torch.zeros(len(self), dtype=torch.int64)
        view.is_resident = True
        return view

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (N,) in the order in which they are stored."""
        rows = rows[torch.argsort(self._start[rows])]
        return rows[torch.argsort(self._array[rows], stable=True)]

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Rows (N,) in runs of neighbours, each of about ``BLOCK_BYTES`` of one array."""
        ordered = self.in_order(rows)
        array = self._array[ordered]
        block = self._start[ordered] * self._arrays[0].shape[1] // BLOCK_BYTES
        borders = ((array.diff() != 0) | (block.diff() != 0)).nonzero()[:, 0] + 1
        return list(ordered.tensor_split(borders))

    def prefetch(self, block: torch.Tensor) -> None:
        """Ask the system to read a block of neighbouring rows (N,) at once; only a hint, and without a map nothing."""
        array = int(self._array[block[0]])
        if array < len(self._maps) and hasattr(mmap, "MADV_WILLNEED"):
            size = self._arrays[array].shape[1]
            first = int(self._start[block].min()) * size // mmap.PAGESIZE * mmap.PAGESIZE
            last = int((self._start[block] + self.lengths[block]).max()) * size
            self._maps[array].madvise(mmap.MADV_WILLNEED, first, last - first)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of some rows.

        Args:
            indices: (B,) int64.

        Returns:
            ``values`` (B, T, L, D) and ``mask`` (B, T) bool, True at a row's tokens. Beyond them ``values`` repeats
            the row's last token: a head must mask, and finite values keep a forgotten mask from making NaN.
        """
        starts, lengths = self._start[indices].numpy(), self.lengths[indices].numpy()
        # Both are (B, T): the place of each token in its array, and True where the row has a token.
        tokens, mask = map(torch.from_numpy, padded_places(starts, lengths, LENGTH_STEP[self.dtype]))
        if self.is_resident:
            there = tokens.flatten().to(self.device, non_blocking=True)
            stored, mask = self._arrays[0].index_select(0, there), mask.to(self.device, non_blocking=True)
        else:
            stored = self._gather(tokens, self._array[indices])
        # (B * T, row bytes) -> (B * T, L * D)
        values = self.codec.decode(stored, self.dtype)
        return values.view(*tokens.shape, self.layers, self.width), mask

    def tokens(self, indices: torch.Tensor) -> torch.Tensor:
        """(tokens, L, D) float32: the tokens of some rows (B,), one row after the other."""
        return self.codec.decode(self._stored_tokens(indices), torch.float32).view(-1, self.layers, self.width)

    def _stored_tokens(self, indices: torch.Tensor) -> torch.Tensor:
        """(tokens, row bytes) uint8: the tokens of some rows (B,) as they are stored, one row after the other."""
        lengths = self.lengths[indices]
        # (B,), less where a row's tokens come to lie.
        places = self._start[indices] - (lengths.cumsum(0) - lengths)
        tokens = places.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
        return self._gather(tokens[:, None], self._array[indices].repeat_interleave(lengths))

    def _gather(self, tokens: torch.Tensor, array: torch.Tensor) -> torch.Tensor:
        """(B * T, row bytes) uint8 of tokens (B, T) of the arrays (B,)."""
        numbers = array.unique().tolist()
        if len(numbers) == 1:
            stored = self._arrays[numbers[0]].index_select(0, tokens.flatten())
        else:
            stored = torch.empty(*tokens.shape, self._arrays[0].shape[1], dtype=torch.uint8)
            for number in numbers:
                rows = (array == number).nonzero()[:, 0]
                # (tokens of the rows, row bytes)
                found = self._arrays[number].index_select(0, tokens[rows].flatten())
                stored.index_copy_(0, rows, found.view(len(rows), *stored.shape[1:]))
            stored = stored.flatten(0, 1)
        self._gathered += stored.nbytes
        if self._gathered > RESIDENT_BYTES:
            self.release()
        return stored

    def release(self) -> None:
        """Let go of the pages of the store that reading has brought into memory (they stay in the system's cache)."""
        self._gathered = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            for view in self._maps:
                view.madvise(mmap.MADV_DONTNEED)


def _chunks(ordered: torch.Tensor, ends: torch.Tensor) -> list[torch.Tensor]:
    """Rows (N,), whose tokens end at (N,), in parts of about ``CHUNK_TOKENS`` tokens."""
    return list(torch.split(ordered, torch.bincount((ends - 1) // CHUNK_TOKENS).tolist()))


def ordered_batches(lengths: torch.Tensor, tokens: int = 4096) -> Iterator[torch.Tensor]:
    """All rows once, in batches of similar length of about ``tokens`` tokens, padding included."""
    return map(torch.from_numpy, plan_batches(lengths.numpy(), tokens, "padded"))


def stored_features(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    codec: str | Codec = DEFAULT_CODEC,
) -> tuple[TextFeatures, CacheUse]:
    """Features of texts or pairs through the store; the encoder reads only texts that the store lacks, once.

    A killed run keeps every finished shard; calling again goes on from there. A damaged shard is named, set aside and
    computed again. Two processes that need the same texts compute them once.

    Args:
        inputs: texts or pairs.
        encoder: reads what is not stored.
        store: where features are kept.
        progress: is told every batch, and what is damaged.
        states: numbers of the hidden states to keep, see `Encoder.resolve_states`.
        codec: in which the features are kept; each has a space of its own. See `features/codecs.py`. Of compact
            features, a codec instead of a name says in which basis: a space without one gets it, and where the space
            has another, the features are computed in memory and not stored.

    Raises:
        InputError: there is no such codec.
        EncoderError: the encoder has no such hidden state.
        StoreError: the disk is full or cannot be written or read back.
    """
    states = encoder.resolve_states(states)
    space = store.space(encoder.identity.to_json(), states, codec if isinstance(codec, str) else codec.name)
    basis = codec if isinstance(codec, PcaInt8Codec) else None
    keys = [text_key(*pair) for pair in inputs]
    distinct = dict(zip(keys, inputs, strict=True))
    misses: set[bytes] = set()
    said = 0
    for _ in range(ATTEMPTS):
        if space.codec is None or any(key not in space for key in distinct):
            with space.locked(lambda: progress.say(WAITING)):
                said = _say_damages(space, said, progress)
                # A task's basis comes first: these texts alone would give another one.
                if basis is not None and space.codec is None:
                    space.establish(basis)
                if basis is None or basis.has_basis_of(space.codec):
                    missing = [key for key in distinct if key not in space]
                    misses.update(missing)
                    source = _encoding([distinct[key] for key in missing], encoder, states)
                    _write_into(space, missing, source, progress)
        # Only a task's own basis gives the numbers that its head was trained on.
        if basis is not None and not basis.has_basis_of(space.codec):
            progress.say(OTHER_BASIS)
            features = live_features(inputs, encoder, states=states, codec=basis)
            return features, CacheUse(0, len(distinct), 0)
        rows = space.rows(keys)
        said = _say_damages(space, said, progress)
        if rows is not None:
            stored = dict(zip(keys, rows.length.tolist(), strict=True))
            use = CacheUse(len(distinct) - len(misses), len(misses), sum(stored.values()) * space.row_bytes)
            return TextFeatures(rows, _dtype(encoder)), use
    raise StoreError(
        f"what is written to {space.folder} does not read back intact. Check the disk or set YTUNING_CACHE"
    )


def keep_features(
    inputs: Sequence[TextInput],
    features: TextFeatures,
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    codec: str = DEFAULT_CODEC,
) -> int:
    """Write features that this encoder has computed into the store, those of texts that it lacks; returns how many.

    Args: as of :func:`stored_features`, and ``features`` of these ``states``.

    Raises: as :func:`stored_features`.
    """
    space = store.space(encoder.identity.to_json(), encoder.resolve_states(states), codec)
    rows = {text_key(*pair): row for row, pair in enumerate(inputs)}
    with space.locked(lambda: progress.say(WAITING)):
        _say_damages(space, 0, progress)
        missing = [key for key in rows if key not in space]
        _write_into(space, missing, _copying(features, np.array([rows[key] for key in missing], np.int64)), progress)
    return len(missing)


def _dtype(encoder: Encoder) -> torch.dtype:
    return torch.bfloat16 if encoder.identity.precision == "bf16" else torch.float32


def _say_damages(space: FeatureSpace, said: int, progress: Progress) -> int:
    """Name the damages after the first ``said``; returns how many have been named now."""
    for damage in space.damages[said:]:
        progress.say(str(damage))
    return len(space.damages)


def live_features(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    *,
    states: Sequence[int],
    codec: Codec | None = None,
    padded: bool = False,
) -> TextFeatures:
    """Features of texts or pairs in memory, the store left alone.

    Args:
        inputs: texts or pairs.
        encoder: reads them.
        states: numbers of hidden states, see `Encoder.resolve_states`.
        codec: that they go through. By default they are as the encoder gives them, which is what the store keeps as
            fp16; int8 differs by some 2 % of a token's norm, compact by some 15 %.
        padded: whether a few texts are read in the shortest time; see `Encoder.encode_padded`.
    """
    tokens = encoder.tokenize(inputs)
    count, states = len(inputs), encoder.resolve_states(states)
    codec = codec or Float16Codec(len(states), encoder.identity.width)
    arrays: list[np.ndarray] = []
    array, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
    read = encoder.encode_padded if padded else encoder.encode
    for indices, rows in read(tokens, states, codec.encode):
        # rows (tokens of the batch, row bytes), a text's after those of the text before it
        lengths = tokens.lengths[indices]
        array[indices], start[indices] = len(arrays), np.cumsum(lengths) - lengths
        arrays.append(rows)
    return TextFeatures(StoredRows(arrays, array, start, tokens.lengths, tokens.truncated, codec), _dtype(encoder))


def _encoding(inputs: Sequence[TextInput], encoder: Encoder, states: Sequence[int]) -> Source:
    """The encoder as a source of features."""

    def source(positions: np.ndarray, codec: Codec | None) -> tuple[np.ndarray, np.ndarray, Batches]:
        tokens = encoder.tokenize([inputs[position] for position in positions])
        return tokens.lengths, tokens.truncated, encoder.encode(tokens, states, codec.encode if codec else None)

    return source


def _copying(features: TextFeatures, rows: np.ndarray) -> Source:
    """Features that are there already as a source; position i is their row ``rows[i]``."""

    def source(positions: np.ndarray, codec: Codec | None) -> tuple[np.ndarray, np.ndarray, Batches]:
        chosen = torch.from_numpy(rows[positions])
        lengths = features.lengths[chosen].numpy()
        batches = (
            # In float32: the products of int8's scales and numbers, which then give the same bytes again.
            (batch, _encoded(features.tokens(chosen[batch]), codec))
            for batch in plan_batches(lengths, COPIED_TOKENS, "equal")
        )
        return lengths, features.truncated_rows[rows[positions]], batches

    return source


def _write_into(space: FeatureSpace, keys: list[bytes], source: Source, progress: Progress) -> None:
    """Write the features of texts in shards; when it is interrupted, what is finished is written too.

    A space that has no basis yet gets it from a sample of the texts, which is held in memory and written first.
    """
    done, limit = 0, FIRST_SHARD_BYTES
    for window in _windows(len(keys), source if space.codec is None else None):
        lengths, truncated, batches = source(window, space.codec)
        if space.codec is None:
            held = list(batches)
            space.establish(_fitted([features for _, features in held], space, progress))
            batches = ((indices, _encoded(torch.from_numpy(features), space.codec)) for indices, features in held)
        shard = _Shard(space, [keys[position] for position in window], lengths, truncated, limit)
        try:
            for indices, rows in batches:
                shard.add(indices, rows)
                done += len(indices)
                progress.step("encode", done, len(keys))
        finally:
            shard.flush()
        limit = shard.limit


def _windows(count: int, unfitted: Source | None) -> Iterator[np.ndarray]:
    """Positions of all texts in parts; the first part is what a basis should be fitted on, if one has to be.

    Within a part the encoder goes from short texts to long ones: its first tokens would stand for short texts only.
    """
    rest = np.arange(count)
    if unfitted is not None and count:
        lengths, _, _ = unfitted(rest[:: -(-count // 1024)], None)
        sample = rest[:: max(1, round(count * lengths.mean() / FIT_TOKENS))]
        yield sample
        rest = np.delete(rest, sample)
    yield from (rest[first : first + WINDOW_TEXTS] for first in range(0, len(rest), WINDOW_TEXTS))


def _encoded(features: torch.Tensor, codec: Codec | None) -> np.ndarray:
    return (features if codec is None else codec.encode(features)).numpy()


def _fitted(batches: list[np.ndarray], space: FeatureSpace, progress: Progress) -> PcaInt8Codec:
    """The basis fitted on batches (tokens, L, D)."""
    tokens = np.concatenate(batches)
    basis = PcaInt8Codec.fitted(tokens)
    if len(tokens) < FEWEST_FIT_TOKENS * len(basis.weights):
        progress.say(
            f"the store's compact basis is fitted on {len(tokens):,} tokens only and may fit other texts badly: before "
            f"you add many, begin anew with ytuning cache remove {space.folder.name}"
        )
    return basis


class _Shard:
    """Gathers encoded batches in one buffer, so that no batch outlives its turn, and writes it when it is full.

    It is full at ``limit`` bytes, then at twice as many. The time does not matter, so that the same texts lie in the
    same shards on a slow machine.
    """

    def __init__(
        self, space: FeatureSpace, keys: list[bytes], lengths: np.ndarray, truncated: np.ndarray, limit: int
    ) -> None:
        self.space, self.limit = space, limit
        self.keys, self.lengths, self.truncated = keys, lengths, truncated
        self.buffer = np.empty((max(1, SHARD_BYTES // space.row_bytes), space.row_bytes), np.uint8)
        self.rows: list[np.ndarray] = []
        self.used = 0

    def add(self, indices: np.ndarray, batch: np.ndarray) -> None:
        """Take a batch: positions of its texts (B,) and their encoded tokens (tokens, row bytes)."""
        if self.rows and self.used + len(batch) > min(len(self.buffer), self.limit // self.space.row_bytes):
            self.flush()
            self.limit = min(2 * self.limit, SHARD_BYTES)
        if len(batch) > len(self.buffer):
            self.buffer = np.empty_like(batch)
        self.buffer[self.used : self.used + len(batch)] = batch
        self.rows.append(indices)
        self.used += len(batch)

    def flush(self) -> None:
        """Write what has been gathered, if anything."""
        if not self.rows:
            return
        rows, features = np.concatenate(self.rows), self.buffer[: self.used]
        self.rows, self.used = [], 0
        self.space.write([self.keys[row] for row in rows], self.lengths[rows], self.truncated[rows], features)
