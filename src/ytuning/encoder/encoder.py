"""The frozen encoder: texts and numbers of hidden states in, token features out, and its identity.

Nothing is padded and no attention mask is needed, so that any architecture works without a padding token: a batch holds
texts end to end where the architecture is known (`layouts.py`) or its products do not depend on their rows
(`torch_backend.py`), else texts of one token count only. A text's features are the same bits whichever texts it shares
a batch with.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.download import DEFAULT_ENCODER, find_encoder, weights_hash
from ytuning.encoder.layouts import read_layout
from ytuning.encoder.packed import PackedStates
from ytuning.encoder.packed_gpu import PackedGpu
from ytuning.encoder.pretrained import (
    PRECISIONS,
    EncoderIdentity,
    Precision,
    States,
    default_states,
    fast_precision,
    load_model,
    longest_input,
    tokenizer_rules,
)
from ytuning.encoder.products import FEWEST_TOKENS, is_onednn_faster
from ytuning.encoder.tokens import (
    LONG_TEXTS,
    BatchForm,
    LongText,
    TokenizedTexts,
    plan_batches,
    plan_windows,
    remaining,
)
from ytuning.encoder.torch_backend import TorchStates
from ytuning.errors import EncoderError, must_be_one_of, parameter
from ytuning.system.machine import keep_freed_memory, one_thread, shared_threads, stay_on_one_thread

__all__ = ["Batches", "Encoder", "Span", "load_encoder"]

Span = tuple[int, int, int]
"""A token's characters: 0 for the text or 1 for the second one, the first one's place, and the place after the last."""

Finish = Callable[[torch.Tensor], torch.Tensor]
"""Makes something else of features (tokens, L, D) float16 where they are, such as what a codec stores."""

Batches = Iterator[tuple[np.ndarray, np.ndarray]]
"""Positions of a batch's texts (B,), and what was computed for their tokens (tokens, ...), one text after the other."""

# On a CPU one batch's activations should stay in the L2 cache. An H100, at the shape of DeBERTa-v2-XXL, takes as long
# with 16,384 tokens as with 65,536, and 2.1 GB less memory.
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16_384}
# Tokens of a text that is read in windows; what is longer is hardly meant as one text.
LONGEST_WINDOWED = 65_536
# Batches that are computed, at least, before the first one is taken.
AHEAD = 4


class Encoder:
    """A frozen encoder and its tokenizer, which computes whatever hidden states it is asked for.

    Made by :func:`load_encoder`.

    Attributes:
        backend: computes hidden states; texts end to end where the model is laid out for it.
        tokens_per_batch: about the most tokens that are computed at once.
    """

    def __init__(self, model: Any, tokenizer: Any, identity: EncoderIdentity, device: torch.device) -> None:
        self.model, self.tokenizer, self.identity, self.device = model, tokenizer, identity, device
        self.tokens_per_batch = TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"])
        # The config says whether segments matter; the tokenizer's own list changes with the version of transformers.
        self._typed = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
        self.backend: TorchStates | PackedStates | PackedGpu
        onednn = is_onednn_faster(model.dtype)
        # To read a layout takes passes of the model.
        is_packable = PackedStates.takes(model.dtype, device, onednn=onednn) or PackedGpu.takes(device)
        layout = read_layout(model) if is_packable else None
        if layout is not None and PackedStates.fits(layout, device, onednn=onednn):
            self.backend = PackedStates(layout, onednn=onednn)
        elif layout is not None and PackedGpu.fits(layout, device, identity.max_length):
            self.backend = PackedGpu(layout)
        else:
            self.backend = TorchStates(model, device, onednn=onednn)

    @property
    def depth(self) -> int:
        """Layers that it has, which is the number of its last hidden state; 0 is that of the embeddings."""
        return int(self.model.config.num_hidden_layers)

    def release(self) -> None:
        """Let the weights go: it still cuts texts into tokens and says what it was, but encodes nothing any more."""
        self.backend = TorchStates(self.model.to("meta"), torch.device("meta"))

    def resolve_states(self, wanted: Sequence[int] | None) -> States:
        """Numbers of its hidden states, each once and rising.

        Args:
            wanted: numbers from 0 to ``depth``, -1 for the last; ``None``: the default ones.

        Raises:
            EncoderError: it has no such hidden state.
        """
        numbers = default_states(self.depth) if wanted is None else tuple(wanted)
        states = tuple(sorted({self.depth if state == -1 else int(state) for state in numbers}))
        if not states or states[0] < 0 or states[-1] > self.depth:
            raise EncoderError(
                f"{parameter('layers')} must be from 0 to {self.depth} for the encoder {self.identity.name!r}, or -1 "
                f"for the last. Got {list(numbers)} instead."
            )
        return states

    def tokenize(self, inputs: Sequence[TextInput]) -> TokenizedTexts:
        """Token ids of texts or pairs (a pair is joined by the tokenizer's own template).

        A pair that is too long loses tokens from its longer text first. A single text that is to be read in windows
        keeps all tokens, up to ``LONGEST_WINDOWED``.

        A text of which the tokenizer makes no token, as one without special tokens does of a blank text, is read as
        one special token: the one that ends a text, or else another.

        Raises:
            EncoderError: there is such a text, and the tokenizer has no special token.
        """
        encodings = self._tokenizer_for(inputs).encode_batch_fast(_joined(inputs))
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        nothing: list[int] = []
        if not lengths.all():
            nothing = [self._token_of_nothing(inputs[int(lengths.argmin())][0])]
            lengths = lengths.clip(1)
        total = int(lengths.sum())
        return TokenizedTexts(
            ids=np.fromiter((token for e in encodings for token in e.ids or nothing), np.int32, total),
            types=np.fromiter((kind for e in encodings for kind in e.type_ids or [0]), np.int8, total),
            offsets=np.concatenate(([0], np.cumsum(lengths))),
            truncated=np.fromiter((bool(e.overflowing) for e in encodings), bool, len(encodings)),
        )

    def _token_of_nothing(self, text: str) -> int:
        for name in ("eos", "bos", "sep", "cls", "pad", "unk"):
            token: int | None = getattr(self.tokenizer, f"{name}_token_id")
            if token is not None:
                return token
        name = self.identity.name
        raise EncoderError(f"the tokenizer of {name!r} finds no token in {text[:60]!r}. Remove that row")

    def spans(self, inputs: Sequence[TextInput]) -> list[list[Span]]:
        """Where each token of :meth:`tokenize` stands in its text; of special tokens nowhere, (0, 0, 0).

        Of characters that are several tokens, and with some tokenizers of spaces, neighbours share a part.
        """
        # Slower than what tokenize calls, which needs no places.
        encodings = self._tokenizer_for(inputs).encode_batch(_joined(inputs))
        return [
            [(0, 0, 0) if side is None else (side, *ends) for side, ends in zip(e.sequence_ids, e.offsets, strict=True)]
            or [(0, 0, 0)]
            for e in encodings
        ]

    def _tokenizer_for(self, inputs: Sequence[TextInput]) -> Any:
        """The fast tokenizer, which cuts texts and leaves them unpadded."""
        fast = self.tokenizer.backend_tokenizer
        whole = self.identity.long_text == "window" and all(pair is None for _, pair in inputs)
        most = max(LONGEST_WINDOWED, self.identity.max_length) if whole else self.identity.max_length
        fast.enable_truncation(most, strategy="longest_first")
        fast.no_padding()
        return fast

    def encode(
        self,
        tokens: TokenizedTexts,
        states: Sequence[int],
        finish: Finish | None = None,
        left_out: np.ndarray | None = None,
    ) -> Batches:
        """Hidden states, a batch at a time; layers above the deepest are not computed where the model allows that.

        Args:
            tokens: of the texts.
            states: (L,) numbers of hidden states, as of :meth:`resolve_states`.
            finish: what else each core does with its batches' features.
            left_out: (texts,) bool, texts that are not read. A flag that is set later counts for each batch that has
                not begun.

        Yields:
            ``(indices, features)``: the batch's texts (B,) and their tokens' features (sum of their tokens, L, D)
            float16, one text after the other; or what ``finish`` has made of these.
        """
        return self._batches(tokens, states, finish, "equal", left_out)

    def encode_padded(self, tokens: TokenizedTexts, states: Sequence[int], finish: Finish | None = None) -> Batches:
        """The same as :meth:`encode` in the shortest time for a few texts: for answers, not for training.

        Features may differ in the last bits from those that are stored. On a CPU all cores share a single batch in
        fp32, and in bf16 if the model is not packed, unless it computes texts of several lengths in turn. Of models
        whose batches otherwise hold texts of one length only, texts of about one length are padded to it, and features
        depend a little on the texts beside them.

        Yields: as :meth:`encode`.
        """
        return self._batches(tokens, states, finish, "padded")

    def _batches(
        self,
        tokens: TokenizedTexts,
        states: Sequence[int],
        finish: Finish | None,
        form: BatchForm,
        left_out: np.ndarray | None = None,
    ) -> Batches:
        """Batches and what ``finish`` makes of their features, then each text that is read in windows."""
        numbers, finish = self.resolve_states(states), finish or (lambda features: features)
        # One answer may be computed by all threads together, if that gives the bits of one thread or nearly these.
        together = form == "padded" and (isinstance(self.backend, TorchStates) or self.identity.precision == "fp32")
        if self._takes_any_lengths:
            form = "packed"
        short = np.flatnonzero(tokens.lengths <= self.identity.max_length)
        lengths, budget = tokens.lengths[short], self._equal_tokens if form == "equal" else self.tokens_per_batch
        with shared_threads() as threads, _workers(self.device, threads) as run:
            if form != "equal" and self.device.type == "cpu":
                # Few enough tokens that no core is idle.
                budget = min(budget, max(FEWEST_TOKENS, -(-int(lengths.sum()) // threads)))
            batches = [short[batch] for batch in plan_batches(lengths, budget, form)]
            # Each a batch of its own, (1,).
            batches += list(np.flatnonzero(tokens.lengths > self.identity.max_length)[:, None])
            todo = iter(batches) if left_out is None else remaining(batches, left_out)
            first = next(todo, None)
            if first is None:
                return

            def compute(batch: np.ndarray) -> torch.Tensor:
                if tokens.lengths[batch[0]] > self.identity.max_length:
                    features = self._windowed(tokens, batch[0], numbers)
                else:
                    features = (self._padded if form == "padded" else self._features)(tokens, batch, numbers)
                # Weights that are no numbers spoil every token, so one is enough.
                if batch is first and not features[0].isfinite().all():
                    raise EncoderError(
                        f"the encoder {self.identity.name!r} gives values that are no numbers, so its weights are "
                        "damaged. Get them again, or take another encoder"
                    )
                return finish(features)

            yield from run(compute, chain([first], todo), alone=len(batches) == 1, together=together)

    @property
    def _takes_any_lengths(self) -> bool:
        """Whether texts of all lengths may share a batch."""
        return not isinstance(self.backend, TorchStates) or self.backend.is_steady

    @property
    def _equal_tokens(self) -> int:
        """The most tokens in a batch of texts of one length, or of packed ones."""
        budget = self.tokens_per_batch
        return self.backend.most_tokens(budget) if isinstance(self.backend, TorchStates) else budget

    def _padded(self, tokens: TokenizedTexts, batch: np.ndarray, states: States) -> torch.Tensor:
        """(tokens of the batch, L, D) float16."""
        # (B, T) each
        ids, types, mask = tokens.padded(batch, self.tokenizer.pad_token_id or 0)
        assert isinstance(self.backend, TorchStates)
        inputs = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        hidden = self.backend.padded(inputs | ({"token_type_ids": types} if self._typed else {}), states)
        return hidden[torch.from_numpy(mask).to(hidden.device)]

    def _windowed(self, tokens: TokenizedTexts, text: int, states: States) -> torch.Tensor:
        """(tokens of the text, L, D) float16: each token from the window that keeps it."""
        windows = plan_windows(int(tokens.lengths[text]), self.identity.max_length, *self._special_tokens)
        size = max(1, self._equal_tokens // self.identity.max_length)
        kept: list[torch.Tensor] = []
        for first in range(0, len(windows), size):
            some = windows[first : first + size]
            gathered = tokens.gathered([tokens.offsets[text] + window.tokens for window in some])
            # One (M, L, D) for each window.
            features = self._features(gathered, np.arange(len(some)), states).split(gathered.lengths.tolist())
            kept += [hidden[window.kept] for hidden, window in zip(features, some, strict=True)]
        return torch.cat(kept)

    @cached_property
    def _special_tokens(self) -> tuple[int, int]:
        """How many the tokenizer puts before a single text and after it."""
        mask = self.tokenizer.backend_tokenizer.encode("a").special_tokens_mask
        inner = [position for position, special in enumerate(mask) if not special] or [len(mask)]
        return inner[0], len(mask) - 1 - inner[-1]

    def _features(self, tokens: TokenizedTexts, batch: np.ndarray, states: States) -> torch.Tensor:
        """(tokens of the batch, L, D) float16."""
        filled = batch
        if isinstance(self.backend, TorchStates) and not self.backend.is_steady:
            fill = self.backend.rows(len(batch), int(tokens.lengths[batch[0]]), self._equal_tokens) - len(batch)
            # Filled up with the last text.
            filled = np.pad(batch, (0, fill), mode="edge")
        places = tokens.places(filled)
        ids = tokens.ids[places].astype(np.int64)
        types = tokens.types[places].astype(np.int64) if self._typed else None
        return self.backend(ids, types, tokens.lengths[filled], states)[: tokens.lengths[batch].sum()]


def load_encoder(
    name: str | Path = DEFAULT_ENCODER,
    *,
    precision: Precision = "auto",
    max_length: int | None = None,
    device: str | None = None,
    long_text: LongText = "truncate",
) -> Encoder:
    """Load a frozen encoder; this reads and hashes its weights, so do it once.

    Args:
        name: a folder or a Hugging Face name. Only safetensors weights are read and no code of the model's own is run.
        precision: ``"auto"`` is bf16 where the processor computes faster in it, else fp32.
        max_length: tokens at which texts are cut; default: what the encoder was made for, at most 512.
        device: ``"cpu"``, ``"cuda"``...; default: a GPU when there is one.
        long_text: of a text of more tokens than ``max_length`` only the beginning is read (``"truncate"``), or all of
            it in overlapping windows (``"window"``); of two texts that are read as one always the beginnings.

    Raises:
        EncoderError: not found, no safetensors weights, wrong hash of the default encoder, unknown architecture,
            length that it does not have, unknown precision.
        MissingExtraError: the default encoder is neither in the Hub cache nor installed, and the Hub is out of reach.
    """
    if precision not in PRECISIONS:
        raise EncoderError(must_be_one_of(parameter("precision"), precision, PRECISIONS))
    if long_text not in LONG_TEXTS:
        raise EncoderError(must_be_one_of(parameter("long_text"), long_text, LONG_TEXTS))
    folder = find_encoder(str(name))
    weights = weights_hash(folder, str(name))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    arithmetic = fast_precision(place) if precision == "auto" else precision
    model, tokenizer = load_model(folder, str(name), torch.bfloat16 if arithmetic == "bf16" else torch.float32)
    if model.config.num_hidden_layers < 1:
        raise EncoderError(f"the encoder {str(name)!r} has no layers. Take another one")
    identity = EncoderIdentity(
        name=str(name),
        weights=weights,
        tokenizer=hashlib.sha256(tokenizer_rules(tokenizer)).hexdigest(),
        config=hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        precision=arithmetic,
        max_length=longest_input(max_length, folder, model.config, str(name)),
        width=int(model.config.hidden_size),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        long_text=long_text,
    )
    return Encoder(model.to(place), tokenizer, identity, place)


def _joined(inputs: Sequence[TextInput]) -> list[str | tuple[str, str]]:
    """As the fast tokenizer takes them."""
    return [text if pair is None else (text, pair) for text, pair in inputs]


Compute = Callable[[np.ndarray], torch.Tensor]


@contextmanager
def _workers(device: torch.device, threads: int) -> Iterator[Callable[..., Batches]]:
    """A map over batches, in order, that computes a few batches ahead of its reader and gives it each with its array.

    On a CPU each core computes a whole batch: no core waits for another inside small operations, a batch's
    activations stay in one core's cache, and results do not depend on the number of cores. For a GPU one thread hands
    out work; what is ready is copied beside the work on the next batch. A single batch is computed where it is asked
    for, which spares a thread's start; on a CPU by all threads ``together``, if that is said, or else by one.
    """
    keep_freed_memory()
    count = threads if device.type == "cpu" else 1
    fetch = _to_host(device)
    pool = ThreadPoolExecutor(count, "encoder", initializer=stay_on_one_thread)

    def run(compute: Compute, batches: Iterator[np.ndarray], *, alone: bool, together: bool) -> Batches:
        if alone:
            batch = next(batches)
            with nullcontext() if together or device.type != "cpu" else one_thread():
                result = fetch(compute(batch))
            yield batch, result()
            return

        def fetched(batch: np.ndarray) -> Callable[[], np.ndarray]:
            return fetch(compute(batch))

        ahead = deque((batch, pool.submit(fetched, batch)) for batch in islice(batches, max(AHEAD, 2 * count)))
        while ahead:
            batch, computed = ahead.popleft()
            result = computed.result()
            ahead.extend((batch, pool.submit(fetched, batch)) for batch in islice(batches, 1))
            yield batch, result()

    try:
        yield run
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _to_host(device: torch.device) -> Callable[[torch.Tensor], Callable[[], np.ndarray]]:
    """What begins the copy of a tensor to the host and gives what waits for it."""
    if device.type != "cuda":
        return lambda values: lambda: values.cpu().numpy()
    copies = torch.cuda.Stream(device)

    def fetch(values: torch.Tensor) -> Callable[[], np.ndarray]:
        copies.wait_stream(torch.cuda.current_stream(device))
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        with torch.cuda.stream(copies):
            host.copy_(values, non_blocking=True)
            done = copies.record_event()
        # Or its memory could be used again before it is copied.
        values.record_stream(copies)

        def wait() -> np.ndarray:
            done.synchronize()
            return host.numpy()

        return wait

    return fetch
