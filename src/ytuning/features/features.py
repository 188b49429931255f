"""Features of single texts and of pairs: computed where the store lacks them, and gathered batch by batch.

Of pairs that are encoded separately, a text that many share is encoded once.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from ytuning.data.dataset import TextInput
from ytuning.encoder.encoder import Batches, Encoder
from ytuning.encoder.pretrained import States
from ytuning.encoder.tokens import padded_places, plan_batches, remaining
from ytuning.errors import StoreError
from ytuning.features.codecs import (
    DEFAULT_CODEC,
    Codec,
    Decoder,
    Float16Codec,
    PcaInt8Codec,
    Selected,
)
from ytuning.features.keys import WantedKeys, text_key
from ytuning.features.store import FeatureSpace, FeatureStore, StoredRows
from ytuning.features.writing import Source, encoded, establish_basis, write_features
from ytuning.heads.pairs import PairMode
from ytuning.progress import Progress
from ytuning.system.files import ReadFile

__all__ = [
    "CacheUse", "Features", "PairFeatures", "TextFeatures", "keep_inputs", "live_features",
    "live_inputs", "mean_pooled", "ordered_batches", "stored_features", "stored_inputs",
    "stored_states",
]  # fmt: skip

# Tokens of a batch when stored features are written again in another codec.
COPIED_TOKENS = 4096
# Tokens that are copied to a GPU at a time, where they have to be gathered first.
CHUNK_TOKENS = 65_536
# They are gathered where runs of neighbours in the store are shorter than this on average: many small copies
# would take longer than one gather.
FEWEST_RUN_TOKENS = 2048
# Rows in files or in several arrays are copied one by one where they have this many tokens or more, with the padding.
FEWEST_COPIED_TOKENS = 4
CPU = torch.device("cpu")
# After this number of gathered bytes the store's pages are let go of, because a page brings in its neighbours and
# resident memory would grow to the size of the store. Training on SST-2 takes as long as with four times as many, and
# 0.4 GB less.
RESIDENT_BYTES = 12 << 20
# Batches are padded to a multiple of so many tokens: in bfloat16 oneDNN computes, which compiles, and keeps in memory,
# every shape that it meets. In float32 another library does, and padding would only cost time.
LENGTH_STEP = {torch.bfloat16: 4, torch.float32: 1}
# Bytes that are read at once from a store larger than the memory: one seek for many rows.
BLOCK_BYTES = 256 << 10
OTHER_BASIS = (
    "the store's compact features have another basis than the task's, so these texts are read again and not stored"
)
# What was just written is read back so many times before the disk is called bad.
ATTEMPTS = 3


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


class TextFeatures:
    """Frozen token features with one encoded text, or two encoded as one, in each row, gathered from where they lie.

    Attributes:
        dtype: of the batches: bfloat16 where the encoder computed in it, which loses nothing more, else float32.
        lengths: (rows,) int64 tensor; tokens of each row.
        truncated_rows: (rows,) bool array; whether the row's text was cut at the encoder's maximum length.
        layers: L, hidden states kept of each token.
        width: D, size of a hidden state.
        device: where batches are.
        is_resident: whether they are those of :meth:`resident`.
        pair_mode: ``"separate"`` if a row is a pair of texts that were encoded separately, else None.
        codec: what stored bytes are decoded with.
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
        self._files = rows.files if ReadFile.reads_into else []
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

    def selected(self, rows: torch.Tensor) -> TextFeatures:
        """Features of some rows (N,), which may repeat, in their order."""
        view = copy.copy(self)
        view.lengths, view.truncated_rows = self.lengths[rows], self.truncated_rows[rows.numpy()]
        view._array, view._start = self._array[rows], self._start[rows]
        return view

    def at_positions(self, positions: Sequence[int]) -> TextFeatures:
        """The same rows, of each token only the hidden states at these positions among the L (from 0, rising)."""
        wanted, codec = tuple(positions), self.codec
        if not wanted or list(wanted) != sorted(set(wanted)) or not 0 <= wanted[0] <= wanted[-1] < self.layers:
            raise ValueError(f"positions must differ, rise and be from 0 to {self.layers - 1}. Got {list(wanted)}")
        if len(wanted) == self.layers:
            return self
        if isinstance(codec, Selected):
            wanted, codec = tuple(codec.positions[position] for position in wanted), codec.codec
        return self.seen_as(Selected(codec, wanted))

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
        runs = ordered.tensor_split(apart.nonzero()[:, 0] + 1)
        gathered = len(runs) * FEWEST_RUN_TOKENS > len(held)
        if gathered:
            runs = ordered.split(torch.bincount((ends - 1) // CHUNK_TOKENS).tolist())
        for run, target in zip(runs, held.split([int(self.lengths[run].sum()) for run in runs]), strict=True):
            first = int(self._start[run[0]])
            neighbours = self._arrays[int(self._array[run[0]])][first : first + len(target)]
            target.copy_(self._stored_tokens(run) if gathered else neighbours)
        self.release()
        view = copy.copy(self)
        view.device, view.is_resident = device, True
        view._arrays, view._maps, view._files, view._gathered = [held], [], [], 0
        # Of other rows: out of bounds.
        view._start = torch.full((len(self),), len(held)).index_copy_(0, ordered, ends - lengths)
        view._array = torch.zeros(len(self), dtype=torch.int64)
        return view

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (N,) in the order in which they are stored."""
        rows = rows[torch.argsort(self._start[rows])]
        return rows[torch.argsort(self._array[rows], stable=True)]

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Rows (N,) in runs of neighbours, each of about ``BLOCK_BYTES`` of one array."""
        ordered = self.in_order(rows)
        block = self._start[ordered] * self._arrays[0].shape[1] // BLOCK_BYTES
        apart = (self._array[ordered].diff() != 0) | (block.diff() != 0)
        return list(ordered.tensor_split(apart.nonzero()[:, 0] + 1))

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
            arrays = self._array[indices].unique()
            if (self._files or len(arrays) > 1) and tokens.shape[1] >= FEWEST_COPIED_TOKENS:
                stored = self._copied(indices, tokens.shape[1])
            else:
                stored = self._gather(tokens, self._array[indices], arrays)
        # (B * T, row bytes) -> (B * T, L * D)
        values = self.codec.decode(stored, self.dtype)
        return values.view(*tokens.shape, self.layers, self.width), mask

    def tokens(self, indices: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(tokens, L, D): the tokens of some rows (B,), one row after the other."""
        return self.codec.decode(self._stored_tokens(indices), dtype).view(-1, self.layers, self.width)

    def _stored_tokens(self, indices: torch.Tensor) -> torch.Tensor:
        """(tokens, row bytes) uint8: the tokens of some rows (B,) as they are stored, one row after the other."""
        lengths = self.lengths[indices]
        if self._files and lengths.sum() > FEWEST_COPIED_TOKENS * len(indices):
            return self._copied(indices)
        # (B,), less where a row's tokens come to lie.
        places = self._start[indices] - (lengths.cumsum(0) - lengths)
        tokens = places.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
        array = self._array[indices]
        return self._gather(tokens[:, None], array.repeat_interleave(lengths), array.unique())

    def _copied(self, indices: torch.Tensor, width: int | None = None) -> torch.Tensor:
        """(B * T, row bytes) uint8 of rows (B,), each with its last token repeated up to T tokens.

        Without a width (T) there is nothing between them: (tokens, row bytes). Of several arrays this takes a fifth of
        the time of :meth:`_gather`, which copies twice. Where there are files, the system copies each row from its
        cache. A memory map would bring in every page first, and the pages beside it, and let go of them again: half of
        the time of a batch of SST-2 (benchmarks/LOG.md).
        """
        starts, lengths, numbers = (part[indices].tolist() for part in (self._start, self.lengths, self._array))
        size, count = self._arrays[0].shape[1], sum(lengths) if width is None else len(indices) * width
        stored = np.empty((count, size), np.uint8)
        arrays = {number: self._arrays[number].numpy() for number in set(numbers)}
        target, first = stored.data.cast("B"), 0
        for start, length, number in zip(starts, lengths, numbers, strict=True):
            end = first + length
            if self._files:
                self._files[number].read_into(target[first * size : end * size], start * size)
            else:
                stored[first:end] = arrays[number][start : start + length]
            first = end if width is None else first + width
            if end < first:
                stored[end:first] = stored[end - 1]
        copied = torch.from_numpy(stored)
        return copied if self._files else self._counted(copied)

    def _gather(self, tokens: torch.Tensor, array: torch.Tensor, arrays: torch.Tensor) -> torch.Tensor:
        """(B * T, row bytes) uint8 of tokens (B, T) of the arrays (B,), which are one or several ``arrays``."""
        first, *others = arrays.tolist()
        if not others:
            stored = self._arrays[first].index_select(0, tokens.flatten())
        else:
            stored = torch.empty(*tokens.shape, self._arrays[0].shape[1], dtype=torch.uint8)
            for shard in (first, *others):
                rows = (array == shard).nonzero()[:, 0]
                # (tokens of the rows, row bytes)
                values = self._arrays[shard].index_select(0, tokens[rows].flatten())
                stored.index_copy_(0, rows, values.view(len(rows), *stored.shape[1:]))
            stored = stored.flatten(0, 1)
        return self._counted(stored)

    def _counted(self, stored: torch.Tensor) -> torch.Tensor:
        """The same bytes; after many of them the pages that they lie in are let go of."""
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


class PairFeatures:
    """Features of pairs of rows of other features; a batch holds the first texts of its pairs, then the second ones.

    Attributes:
        texts: features of single texts.
        first, second: (rows,) int64, positions in ``texts`` of the texts of each pair.
    """

    pair_mode: PairMode | None = "separate"

    def __init__(self, texts: TextFeatures, first: torch.Tensor, second: torch.Tensor) -> None:
        self.texts, self.first, self.second = texts, first, second
        # (rows,): a batch pads both sides to the longer text of its pairs, so that is what a row costs.
        self.lengths = torch.maximum(texts.lengths[first], texts.lengths[second])
        self.truncated_rows = texts.truncated_rows[first.numpy()] | texts.truncated_rows[second.numpy()]
        self.layers, self.width, self.codec = texts.layers, texts.width, texts.codec
        self.device, self.is_resident = texts.device, texts.is_resident

    def __len__(self) -> int:
        return len(self.lengths)

    def with_texts(self, texts: TextFeatures) -> PairFeatures:
        """The same pairs of other features of the same texts."""
        return PairFeatures(texts, self.first, self.second)

    def texts_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Positions in ``texts`` of all texts of rows (N,), sorted, each once."""
        return torch.cat((self.first[rows], self.second[rows])).unique()

    def bytes_of(self, rows: torch.Tensor) -> int:
        """What the texts of rows (N,) take where they lie."""
        return self.texts.bytes_of(self.texts_of(rows))

    def at_positions(self, positions: Sequence[int]) -> PairFeatures:
        """The same pairs, of each token only the hidden states at these positions among the L."""
        return self.with_texts(self.texts.at_positions(positions))

    def recoded(self, codec: Codec) -> PairFeatures:
        """The same pairs with their texts in another codec; see `TextFeatures.recoded`."""
        return self.with_texts(self.texts.recoded(codec))

    def resident(self, rows: torch.Tensor, device: torch.device) -> PairFeatures:
        """The same pairs with the texts of rows (N,) in a device's memory."""
        return self.with_texts(self.texts.resident(self.texts_of(rows), device))

    def blocks(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Rows (N,) in runs whose first texts are neighbours; the second ones may lie anywhere."""
        # (texts,): where each text comes in the store, so that pairs are ordered by their first text.
        rank = torch.empty(len(self.texts), dtype=torch.int64)
        rank[self.texts.in_order(torch.arange(len(self.texts)))] = torch.arange(len(self.texts))
        ordered = rows[torch.argsort(rank[self.first[rows]], stable=True)]
        # Second texts may lie anywhere, so a block is only as many pairs as fit into it on average.
        bytes_each = self.bytes_of(rows) // len(rows)
        return list(ordered.split(max(1, BLOCK_BYTES // max(1, bytes_each))))

    def prefetch(self, block: torch.Tensor) -> None:
        """Ask the system to read the first texts of a block of rows (N,) at once; only a hint."""
        self.texts.prefetch(self.first[block])

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (2 * B, T, L, D) and mask (2 * B, T) of rows (B,): B first texts, then B second ones."""
        return self.texts.batch(torch.cat((self.first[indices], self.second[indices])))

    def release(self) -> None:
        """Let go of the pages of the store that reading has brought into memory."""
        self.texts.release()


Features = TextFeatures | PairFeatures
"""Frozen token features of the rows of a data set: what training and answering read, batch by batch."""


def ordered_batches(lengths: torch.Tensor, tokens: int = 4096) -> Iterator[torch.Tensor]:
    """All rows once, in batches of similar length of about ``tokens`` tokens, padding included."""
    return map(torch.from_numpy, plan_batches(lengths.numpy(), tokens, "padded"))


def mean_pooled(features: Features) -> np.ndarray:
    """Pool features to (rows, L * D) float32: the mean over tokens of each stored hidden state, side by side.

    Pairs that were encoded separately have (rows, 4 * L * D): the means u and v of both texts, |u - v| and u * v, as in
    Sentence-BERT (arXiv 1908.10084) and InferSent (arXiv 1705.02364).
    """
    if isinstance(features, PairFeatures):
        texts = mean_pooled(features.texts)
        u, v = texts[features.first.numpy()], texts[features.second.numpy()]
        return np.concatenate((u, v, np.abs(u - v), u * v), axis=1)
    pooled = np.empty((len(features), features.layers * features.width), np.float32)
    for rows in ordered_batches(features.lengths):
        # (tokens, L * D), one row after the other
        values, lengths = features.tokens(rows).flatten(1), features.lengths[rows]
        # Means of runs of a table's rows are what this function computes, in a third of the time of masked sums.
        means = embedding_bag(torch.arange(len(values)), values, lengths.cumsum(0) - lengths, mode="mean")
        pooled[rows.numpy()] = means.numpy()
    features.release()
    return pooled


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
    computed again. Processes that need the same texts at the same time share them, and none waits for another.

    Args:
        inputs: texts or pairs.
        encoder: reads what is not stored.
        store: where features are kept.
        progress: is told every batch, and what is damaged.
        states: numbers of the hidden states to read, see `Encoder.resolve_states`; more may be kept
            (:func:`stored_states`).
        codec: in which the features are kept; each has a space of its own. See `features/codecs.py`. Of compact
            features, a codec instead of a name says in which basis: a space without one gets it, and where the space
            has another, the features are computed in memory and not stored.

    Raises:
        InputError: there is no such codec.
        EncoderError: the encoder has no such hidden state.
        StoreError: the disk is full or cannot be written or read back.
    """
    states, name = encoder.resolve_states(states), codec if isinstance(codec, str) else codec.name
    kept = stored_states(encoder, states, name)
    space = store.space(encoder.identity.to_json(), kept, name)
    basis = codec if isinstance(codec, PcaInt8Codec) else None
    keys = [text_key(*pair) for pair in inputs]
    distinct = dict(zip(keys, inputs, strict=True))
    misses: set[bytes] = set()
    for _ in range(ATTEMPTS):
        if space.codec is None or lacked(space, list(distinct)):
            with space.writing() as others:
                say_damages(space, progress)
                # A task's basis comes first: these texts alone would give another one.
                if basis is not None and space.codec is None:
                    _establish(space, basis, progress)
                if basis is None or basis.has_basis_of(space.codec):
                    missing = lacked(space, list(distinct))
                    source = _encoding([distinct[key] for key in missing], encoder, kept)
                    written = write_features(space, missing, source, progress, store.sizes, others)
                    misses.update(key for key, is_written in zip(missing, written, strict=True) if is_written)
        # Only a task's own basis gives the numbers that its head was trained on.
        if basis is not None and not basis.has_basis_of(space.codec):
            progress.say(OTHER_BASIS)
            return live_features(inputs, encoder, states=states, codec=basis), CacheUse(0, len(distinct), 0)
        rows = space.rows(keys)
        say_damages(space, progress)
        if rows is not None:
            tokens = sum(dict(zip(keys, rows.length.tolist(), strict=True)).values())
            use = CacheUse(len(distinct) - len(misses), len(misses), tokens * space.row_bytes)
            return TextFeatures(rows, _dtype(encoder)).at_positions([kept.index(state) for state in states]), use
    raise not_intact(space)


def _establish(space: FeatureSpace, basis: PcaInt8Codec, progress: Progress) -> None:
    """Give a space a task's basis, unless another process gives it one first."""
    establish_basis(space, lambda: basis, progress)


def lacked(space: FeatureSpace, keys: list[bytes]) -> list[bytes]:
    """Those of the keys whose texts a space lacks."""
    return [keys[row] for row in np.flatnonzero(~space.holds(WantedKeys(keys)))]


def not_intact(space: FeatureSpace) -> StoreError:
    """That the disk does not give back what was written."""
    return StoreError(
        f"what is written to {space.folder} does not read back intact. Check the disk or set YTUNING_CACHE"
    )


def stored_states(encoder: Encoder, states: States, codec: str) -> States:
    """The hidden states that the store keeps for a task that reads some.

    Where they are among the encoder's default ones all of these are kept, so that the tasks of an encoder share one
    space. Compact features go by a basis that belongs to the task's own states.
    """
    default = encoder.resolve_states(None)
    return default if codec != PcaInt8Codec.name and set(states) <= set(default) else states


def _dtype(encoder: Encoder) -> torch.dtype:
    return torch.bfloat16 if encoder.identity.precision == "bf16" else torch.float32


def say_damages(space: FeatureSpace, progress: Progress) -> None:
    """Name the damages that have not been named yet."""
    for damage in space.damages:
        progress.say(str(damage))
    space.damages.clear()


def live_features(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    *,
    states: Sequence[int],
    codec: Codec | None = None,
    padded: bool = False,
) -> TextFeatures:
    """Encode texts or pairs into memory; the store is not used.

    Args:
        inputs: texts or pairs.
        encoder: reads them.
        states: numbers of hidden states, see `Encoder.resolve_states`.
        codec: that they go through. By default they are as the encoder gives them, which is what the store keeps as
            fp16; int8 differs by 1 to 1.5 % of a token's norm, compact by some 15 %.
        padded: whether a few texts are read in the shortest time; see `Encoder.encode_padded`.
    """
    tokens = encoder.tokenize(inputs)
    count, states = len(inputs), encoder.resolve_states(states)
    codec = codec or Float16Codec(len(states), encoder.identity.width)
    arrays: list[np.ndarray] = []
    array, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
    read = encoder.encode_padded if padded else encoder.encode
    for indices, rows in read(tokens, states, codec.encode):
        # (tokens of the batch, row bytes): the tokens of a text follow those of the text before it.
        lengths = tokens.lengths[indices]
        array[indices], start[indices] = len(arrays), np.cumsum(lengths) - lengths
        arrays.append(rows)
    return TextFeatures(StoredRows(arrays, array, start, tokens.lengths, tokens.truncated, codec), _dtype(encoder))


def _encoding(inputs: Sequence[TextInput], encoder: Encoder, states: Sequence[int]) -> Source:
    """The encoder as a source of features."""

    def source(
        positions: np.ndarray, codec: Codec | None, left_out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Batches]:
        tokens = encoder.tokenize([inputs[position] for position in positions])
        batches = encoder.encode(tokens, states, codec.encode if codec else None, left_out)
        return tokens.lengths, tokens.truncated, batches

    return source


def _copying(features: TextFeatures, rows: np.ndarray) -> Source:
    """Features that are there already as a source; position i is their row ``rows[i]``."""

    def source(
        positions: np.ndarray, codec: Codec | None, left_out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Batches]:
        wanted = torch.from_numpy(rows[positions])
        lengths = features.lengths[wanted].numpy()
        batches = (
            # In float32: the products of int8's scales and numbers, which then give the same bytes again.
            (batch, encoded(features.tokens(wanted[batch]), codec))
            for batch in remaining(plan_batches(lengths, COPIED_TOKENS, "equal"), left_out)
        )
        return lengths, features.truncated_rows[rows[positions]], batches

    return source


def stored_inputs(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    states: Sequence[int],
    pair_mode: PairMode | None,
    codec: str | Codec = DEFAULT_CODEC,
) -> tuple[Features, CacheUse]:
    """Features through the store of single texts (``pair_mode`` None) or of pairs; see :func:`stored_features`."""
    texts, with_pairs = distinct_texts(inputs, pair_mode)
    features, use = stored_features(texts, encoder, store, progress, states=states, codec=codec)
    return with_pairs(features), use


def live_inputs(
    inputs: Sequence[TextInput],
    encoder: Encoder,
    *,
    states: Sequence[int],
    pair_mode: PairMode | None,
    codec: Codec | None = None,
    padded: bool = False,
) -> Features:
    """The same in memory, with the store left alone; see :func:`live_features`."""
    texts, with_pairs = distinct_texts(inputs, pair_mode)
    return with_pairs(live_features(texts, encoder, states=states, codec=codec, padded=padded))


def keep_inputs(
    inputs: Sequence[TextInput],
    features: Features,
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    held: States,
    states: States,
    codec: str = DEFAULT_CODEC,
) -> int:
    """Write features that this encoder has computed into the store, those of texts that it lacks; returns how many.

    Nothing is written unless all states that the store keeps are there.

    Args: as of :func:`stored_features`, where ``states`` are those that a task reads (:func:`stored_states` says which
        are written), and ``features`` of the states ``held``.

    Raises: as :func:`stored_features`.
    """
    kept = stored_states(encoder, states, codec)
    if not set(kept) <= set(held):
        return 0
    texts, _ = distinct_texts(inputs, features.pair_mode)
    chosen = features.at_positions([held.index(state) for state in kept])
    of_texts = chosen.texts if isinstance(chosen, PairFeatures) else chosen
    space = store.space(encoder.identity.to_json(), kept, codec)
    rows = {text_key(*pair): row for row, pair in enumerate(texts)}
    with space.writing() as others:
        say_damages(space, progress)
        missing = lacked(space, list(rows))
        source = _copying(of_texts, np.array([rows[key] for key in missing], np.int64))
        return int(write_features(space, missing, source, progress, store.sizes, others).sum())


def distinct_texts(
    inputs: Sequence[TextInput], pair_mode: PairMode | None
) -> tuple[Sequence[TextInput], Callable[[TextFeatures], Features]]:
    """What the encoder reads for texts or pairs, each text of separate pairs once, and what makes rows of that."""
    if pair_mode != "separate":
        return inputs, lambda features: features
    places: dict[str, int] = {}
    first, second = (
        torch.tensor([places.setdefault(text or "", len(places)) for text in side])
        for side in zip(*inputs, strict=True)
    )
    return [(text, None) for text in places], lambda features: PairFeatures(features, first, second)
