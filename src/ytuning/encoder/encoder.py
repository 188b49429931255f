"""The frozen encoder: texts and numbers of hidden states in, token features out, and its identity.

Nothing is padded and no attention mask is needed: a batch holds texts end to end where the model is laid out like BERT
(`packed.py`), else texts of one token count only, so that any architecture works without a padding token. A
text's features are the same bits whichever texts it shares a batch with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ytuning.data.dataset import TextInput
from ytuning.encoder.download import DEFAULT_ENCODER, find_encoder, weights_hash
from ytuning.encoder.packed import PackedStates
from ytuning.encoder.packed_gpu import PackedGpu
from ytuning.encoder.pretrained import (
    EncoderIdentity,
    States,
    load_model,
    longest_input,
    resolve_states,
    tokenizer_rules,
)
from ytuning.encoder.tokens import LONG_TEXTS, LongText, TokenizedTexts, plan_batches, plan_windows
from ytuning.encoder.torch_backend import FEWEST_TOKENS, PRECISIONS, Precision, TorchStates, fast_precision
from ytuning.errors import EncoderError, must_be_one_of
from ytuning.system.machine import keep_freed_memory

__all__ = ["Encoder", "Span", "load_encoder"]

Span = tuple[int, int, int]
"""A token's characters: 0 for the text or 1 for the second one, the first one's place, and the place after the last."""

Finish = Callable[[torch.Tensor], torch.Tensor]
"""Makes something else of features (tokens, L, D) float16 where they are, such as what a codec stores."""

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32_768}  # on a CPU one batch's activations should stay in the L2 cache
LONGEST_WINDOWED = 65_536  # tokens of a text that is read in windows; what is longer is hardly meant as one text
AHEAD = 4  # batches that are computed, at least, before the first one is taken
SIZES = 4  # of batches of one length: oneDNN compiles, and keeps in memory, every shape that it meets


class Encoder:
    """A frozen encoder and its tokenizer, which computes whatever hidden states it is asked for.

    Made by :func:`load_encoder`.
    """

    def __init__(self, model: Any, tokenizer: Any, identity: EncoderIdentity, device: torch.device) -> None:
        self.model, self.tokenizer, self.identity, self.device = model, tokenizer, identity, device
        self.backend: TorchStates | PackedStates | PackedGpu = TorchStates(model, device)
        # The config says whether segments matter; the tokenizer's own list changes with the version of transformers.
        self._typed = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
        self._tokens_per_batch = TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cuda"])

    @property
    def depth(self) -> int:
        """Layers that it has, which is the number of its last hidden state; 0 is that of the embeddings."""
        return int(self.model.config.num_hidden_layers)

    def release(self) -> None:
        """Let the weights go: it still cuts texts into tokens and says what it was, but encodes nothing any more."""
        self.backend = TorchStates(self.model.to("meta"), self.device)

    def resolve_states(self, wanted: Sequence[int] | None, *, pairs: bool = False) -> States:
        """Numbers of its hidden states, each once and rising.

        Args:
            wanted: numbers from 0 to ``depth``, -1 for the last; ``None``: the default ones.
            pairs: whether the default is that for pairs of texts.

        Raises:
            EncoderError: it has no such hidden state.
        """
        return resolve_states(wanted, self.depth, self.identity.name, pairs=pairs)

    def tokenize(self, inputs: Sequence[TextInput]) -> TokenizedTexts:
        """Token ids of texts or pairs (a pair is joined by the tokenizer's own template).

        A pair that is too long loses tokens from its longer text first. A single text that is to be read in windows
        keeps all tokens, up to ``LONGEST_WINDOWED``.

        Raises:
            EncoderError: a text without any token, which only tokenizers without special tokens give.
        """
        encodings = self._cutting(inputs).encode_batch_fast(_joined(inputs))
        lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
        if not lengths.all():
            text = inputs[int(lengths.argmin())][0]
            raise EncoderError(
                f"the tokenizer of {self.identity.name!r} finds no token in {text[:60]!r}. Remove that row"
            )
        total = int(lengths.sum())
        return TokenizedTexts(
            ids=np.fromiter((token for e in encodings for token in e.ids), np.int32, total),
            types=np.fromiter((kind for e in encodings for kind in e.type_ids), np.int8, total),
            offsets=np.concatenate(([0], np.cumsum(lengths))),
            truncated=np.fromiter((bool(e.overflowing) for e in encodings), bool, len(encodings)),
        )

    def spans(self, inputs: Sequence[TextInput]) -> list[list[Span]]:
        """Where each token of :meth:`tokenize` stands in its text; of special tokens nowhere, (0, 0, 0).

        Of characters that are several tokens, and with some tokenizers of spaces, neighbours share a part.
        """
        encodings = self._cutting(inputs).encode_batch(
            _joined(inputs)
        )  # slower than for tokenize, which needs no places
        return [
            [(0, 0, 0) if side is None else (side, *ends) for side, ends in zip(e.sequence_ids, e.offsets, strict=True)]
            for e in encodings
        ]

    def _cutting(self, inputs: Sequence[TextInput]) -> Any:
        """The fast tokenizer, which cuts texts and leaves them unpadded."""
        fast = self.tokenizer.backend_tokenizer
        whole = self.identity.long_text == "window" and all(pair is None for _, pair in inputs)
        most = max(LONGEST_WINDOWED, self.identity.max_length) if whole else self.identity.max_length
        fast.enable_truncation(most, strategy="longest_first")
        fast.no_padding()
        return fast

    def encode(
        self, tokens: TokenizedTexts, states: Sequence[int], finish: Finish | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Hidden states, a batch at a time; of BERT and its kin no layer above the deepest is computed.

        Args:
            tokens: of the texts.
            states: (L,) numbers of hidden states, as of :meth:`resolve_states`.
            finish: what else each core does with its batches' features.

        Yields:
            ``(indices, features)``: the batch's texts (B,) and their tokens' features (sum of their tokens, L, D)
            float16, one text after the other; or what ``finish`` has made of these.
        """
        short = np.flatnonzero(tokens.lengths <= self.identity.max_length)
        lengths = tokens.lengths[short]
        if isinstance(self.backend, PackedStates | PackedGpu):
            plan = plan_batches(lengths, self._share(lengths), "packed")
        else:
            plan = plan_batches(lengths, self._tokens_per_batch, "equal")
        yield from self._computed(tokens, self.resolve_states(states), [short[batch] for batch in plan], finish)

    def encode_padded(
        self, tokens: TokenizedTexts, states: Sequence[int], finish: Finish | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same as :meth:`encode` for a few texts of many lengths, in fewer and fuller passes.

        With models that are not laid out like BERT, texts of about one length are padded to it, so their features
        differ in the last bits from those that are stored, and depend a little on the texts beside them: for answers,
        not for training.

        Yields: as :meth:`encode`.
        """
        if not isinstance(self.backend, TorchStates):
            yield from self.encode(tokens, states, finish)
            return
        short = np.flatnonzero(tokens.lengths <= self.identity.max_length)
        plan = plan_batches(tokens.lengths[short], self._share(tokens.lengths[short]), "padded")
        batches = [short[batch] for batch in plan]
        yield from self._computed(tokens, self.resolve_states(states), batches, finish, padded=True)

    def _share(self, lengths: np.ndarray) -> int:
        """Tokens in a batch of texts of these lengths: on a CPU few enough that no core is idle."""
        if self.device.type != "cpu":
            return self._tokens_per_batch
        return min(self._tokens_per_batch, max(FEWEST_TOKENS, -(-int(lengths.sum()) // torch.get_num_threads())))

    def _computed(
        self,
        tokens: TokenizedTexts,
        states: States,
        batches: list[np.ndarray],
        finish: Finish | None,
        *,
        padded: bool = False,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches and what ``finish`` makes of their features, then each text that is read in windows."""
        finish, compute = finish or (lambda features: features), self._padded if padded else self._features
        with _workers(self.device) as run:
            yield from zip(batches, run(lambda batch: finish(compute(tokens, batch, states)), batches), strict=True)
            long = np.flatnonzero(tokens.lengths > self.identity.max_length)
            found = run(lambda text: finish(self._windowed(tokens, int(text[0]), states)), list(long[:, None]))
            yield from zip(long[:, None], found, strict=True)

    def _padded(self, tokens: TokenizedTexts, batch: np.ndarray, states: States) -> torch.Tensor:
        """(tokens of the batch, L, D) float16."""
        ids, types, mask = tokens.padded(batch, self.tokenizer.pad_token_id or 0)  # (B, T) each
        assert isinstance(self.backend, TorchStates)
        hidden = self.backend(ids, types if self._typed else None, len(batch), states, mask.astype(np.int64))
        return hidden[torch.from_numpy(mask).to(hidden.device)]

    def _windowed(self, tokens: TokenizedTexts, text: int, states: States) -> torch.Tensor:
        """(T, L, D) float16: a text of more tokens than the encoder reads at once, window by window."""
        alone = tokens.alone(text)
        before, after = self._special_tokens
        windows = plan_windows(len(alone.ids), self.identity.max_length, before, after)
        size = max(1, self._tokens_per_batch // self.identity.max_length)
        parts: list[torch.Tensor] = []
        for first in range(0, len(windows), size):
            some = windows[first : first + size]
            gathered = alone.gathered([window.tokens for window in some])
            # One (M, L, D) for each window.
            features = self._features(gathered, np.arange(len(some)), states).split(gathered.lengths.tolist())
            parts += [hidden[window.kept] for hidden, window in zip(features, some, strict=True)]
        return torch.cat(parts)

    @cached_property
    def _special_tokens(self) -> tuple[int, int]:
        """How many the tokenizer puts before a single text and after it."""
        mask = self.tokenizer.backend_tokenizer.encode("a").special_tokens_mask
        inner = [position for position, special in enumerate(mask) if not special] or [len(mask)]
        return inner[0], len(mask) - 1 - inner[-1]

    def _rows(self, texts: int, length: int) -> int:
        """Rows of a batch of ``texts`` texts of ``length`` tokens, some repeated where oneDNN computes.

        There it is rounded up to one of few sizes, in bf16 on a CPU to one size only: there the size of a batch changes
        the last bits of its features. Torch's fp32 takes any size, which spares small sets half of their pass.
        """
        full = max(1, self._tokens_per_batch // length)
        in_onednn = self.identity.precision == "bf16"
        step = -(-full // (1 if self.device.type == "cpu" else SIZES)) if in_onednn else 1
        return max(-(-texts // step) * step, -(-FEWEST_TOKENS // length))

    def _features(self, tokens: TokenizedTexts, batch: np.ndarray, states: States) -> torch.Tensor:
        """(tokens of the batch, L, D) float16."""
        if isinstance(self.backend, PackedStates | PackedGpu):
            places = tokens.places(batch)
            types = tokens.types[places].astype(np.int64) if self._typed else None
            return self.backend(tokens.ids[places].astype(np.int64), types, tokens.lengths[batch], states)
        fill = self._rows(len(batch), int(tokens.lengths[batch[0]])) - len(batch)
        rows = np.concatenate((batch, np.repeat(batch[-1:], fill)))
        ids = tokens.rows(rows, tokens.ids).astype(np.int64)  # (B, T)
        types = tokens.rows(rows, tokens.types).astype(np.int64) if self._typed else None
        return self.backend(ids, types, len(batch), states).flatten(0, 1)

    def _to_packed(self) -> None:
        """Compute texts end to end from now on, if the model is laid out for it."""
        if PackedStates.fits(self.model, self.device):
            self.backend = PackedStates(self.model)
        elif PackedGpu.fits(self.model, self.device, self.identity.max_length):
            self.backend = PackedGpu(self.model)


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
        raise EncoderError(must_be_one_of("precision", precision, PRECISIONS))
    if long_text not in LONG_TEXTS:
        raise EncoderError(must_be_one_of("long_text", long_text, LONG_TEXTS))
    folder = find_encoder(str(name))
    weights = weights_hash(folder, str(name))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    arithmetic = fast_precision(place) if precision == "auto" else precision
    model, tokenizer = load_model(folder, str(name), torch.bfloat16 if arithmetic == "bf16" else torch.float32)
    config = model.config
    identity = EncoderIdentity(
        name=str(name),
        weights=weights,
        tokenizer=hashlib.sha256(tokenizer_rules(tokenizer)).hexdigest(),
        config=hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        precision=arithmetic,
        max_length=longest_input(max_length, folder, config, str(name)),
        width=int(config.hidden_size),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        long_text=long_text,
    )
    encoder = Encoder(model.to(place), tokenizer, identity, place)
    encoder._to_packed()
    return encoder


def _joined(inputs: Sequence[TextInput]) -> list[str | tuple[str, str]]:
    """As the fast tokenizer takes them."""
    return [text if pair is None else (text, pair) for text, pair in inputs]


Run = Callable[[Callable[[np.ndarray], torch.Tensor], list[np.ndarray]], Iterator[np.ndarray]]


@contextmanager
def _workers(device: torch.device) -> Iterator[Run]:
    """A map over batches, in order, that computes a few batches ahead of its reader and gives it arrays.

    On a CPU each core computes a whole batch: no core waits for another inside small operations, a batch's
    activations stay in one core's cache, and results do not depend on the number of cores. For a GPU one thread hands
    out work; what is ready is copied beside the work on the next batch.
    """
    keep_freed_memory()
    threads = torch.get_num_threads()
    count = threads if device.type == "cpu" else 1
    fetch = _to_host(device)
    pool = ThreadPoolExecutor(count, "encoder", initializer=lambda: torch.set_num_threads(1 if count > 1 else threads))

    def run(compute: Callable[[np.ndarray], torch.Tensor], batches: list[np.ndarray]) -> Iterator[np.ndarray]:
        def fetched(batch: np.ndarray) -> Callable[[], np.ndarray]:
            return fetch(compute(batch))

        ahead = [pool.submit(fetched, batch) for batch in batches[: max(AHEAD, 2 * count)]]
        for position in range(len(batches)):
            result = ahead[position % len(ahead)].result()
            following = position + len(ahead)
            if following < len(batches):
                ahead[position % len(ahead)] = pool.submit(fetched, batches[following])
            yield result()

    try:
        yield run
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


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
        values.record_stream(copies)  # or its memory could be used again before it is copied

        def wait() -> np.ndarray:
            done.synchronize()
            return host.numpy()

        return wait

    return fetch
