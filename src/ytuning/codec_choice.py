"""``auto``: measures on a sample of a task what each codec costs in accuracy, and takes the smallest good one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ytuning.codecs import Codec, Compact, build_codec, row_bytes
from ytuning.data import Dataset, labels_of
from ytuning.encoder import Encoder
from ytuning.errors import DataError
from ytuning.features import Features, keep_features
from ytuning.holdout import split_holdout
from ytuning.losses import row_scores, shown_score
from ytuning.pairs import PairedFeatures, keep_pairs, live_inputs
from ytuning.progress import Progress
from ytuning.recipes import Recipe
from ytuning.samples import HELD_OUT, SampleProgress, sample_rows
from ytuning.store import FeatureStore, StoredRows
from ytuning.targets import Target
from ytuning.training import FitResult, fit_head, logits_of

__all__ = ["AUTO", "BARS", "CodecChoice", "choose_codec"]

AUTO = "auto"
BARS = {"compact": 0.005, "int8": 0.002}
"""Accuracy that a codec may lose, or of another kind of task share of the score; smallest codec first."""


@dataclass(frozen=True)
class CodecChoice:
    """A codec and how it was chosen.

    Attributes:
        codec: its name.
        written: texts of the sample that were new to the codec's space, and are stored there now.
        message: what was measured, for the user.
    """

    codec: str
    written: int
    message: str


def choose_codec(
    train: Dataset,
    encoder: Encoder,
    store: FeatureStore,
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress,
    target: Target,
    separate: bool = False,
) -> CodecChoice:
    """Choose a codec for a task by experiment; the same for the same rows and seed.

    Up to 2,000 rows are encoded. A head is trained on four fifths of them in full precision and reads the rest once
    through each codec, from the smallest on: the first that loses no more accuracy than its bar is taken. What was
    encoded is then kept in that codec's space. ``target`` is that of all train rows, ``separate`` whether pairs are
    read one by one.

    Raises:
        InputError, StoreError: as training and storing.
        KeyboardInterrupt: also where training would have given its best head so far, for that is no measurement.
    """
    sample = sample_rows(train, seed, encoder)
    features = live_inputs(sample.inputs, encoder, separate=separate)
    try:
        rows, held = split_holdout(sample, seed, fraction=HELD_OUT)
    except DataError:
        codec, found = "fp16", "as no label has rows enough to hold one out and measure"
    else:
        codec, found = _measured(sample, features, rows, held, recipe, target, seed, progress)
    if isinstance(features, PairedFeatures):
        written = keep_pairs(sample.inputs, features, encoder, store, progress, codec=codec)
    else:
        written = keep_features(sample.inputs, features, encoder, store, progress, codec=codec)
    return CodecChoice(codec, written, f"store: {codec}, {found}")


def _measured(
    sample: Dataset,
    features: Features,
    rows: np.ndarray,
    held: np.ndarray,
    recipe: Recipe,
    target: Target,
    seed: int,
    progress: Progress,
) -> tuple[str, str]:
    """The smallest codec within its bar, and what was measured."""
    truth = target.encode(labels_of(sample))
    fit = fit_head(
        features,
        truth,
        objective=target.objective,
        outputs=target.outputs,
        train=rows,
        validation=held,
        recipe=recipe,
        seed=seed,
        refit=False,
        reduce=False,
        progress=SampleProgress(progress),
    )
    if fit.interrupted:
        raise KeyboardInterrupt

    def score(logits: np.ndarray) -> float:
        goal = torch.from_numpy(truth[held])
        return float(row_scores(target.objective, torch.from_numpy(logits), goal).mean())

    def shown(found: float) -> str:
        return f"{100 * found:.1f}" if target.objective == "single" else shown_score(target.objective, found)

    full = score(fit.validation_logits)
    # Accuracy is a share already; of an error or a cross-entropy it is a share of the whole that may be lost.
    whole = 1.0 if target.objective == "single" else abs(full)
    where = f"on {len(held):,} held-out rows of a sample"
    for name, bar in BARS.items():
        found = score(_through(name, fit, features, rows, held))
        if full - found <= bar * whole + 1e-9:
            sizes = [row_bytes(codec, features.layers, features.width) for codec in (name, "fp16")]
            share = f"{sizes[0] / sizes[1]:.2f} x the bytes of fp16"
            return name, f"{share}; {where} {shown(found)} against {shown(full)} in fp16"
        lost = f"{shown(found)} in {name}"
    return "fp16", f"as the others lose too much; {where} {shown(full)} against {lost}"


def _through(name: str, fit: FitResult, features: Features, rows: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Logits (held rows, C) of the head on features that went through a codec, a basis fitted on ``rows`` only."""
    texts, seen, wanted = features, torch.from_numpy(rows), torch.from_numpy(held)
    if isinstance(features, PairedFeatures):
        texts, seen, wanted = features.texts, features.texts_of(seen), features.texts_of(wanted)
    codec: Codec | None = build_codec(name, texts.layers, texts.width)
    if codec is None:
        codec = Compact.fitted(texts.halves(seen))
    array = codec.encode(texts.halves(wanted))
    length = texts.lengths[wanted].numpy()
    start = np.concatenate(([0], np.cumsum(length)[:-1]))
    zeros = np.zeros(len(wanted), np.int64)
    found = Features(StoredRows([array], zeros, start, length, zeros > 0, codec), texts.dtype)
    if isinstance(features, PairedFeatures):
        places = (
            torch.searchsorted(wanted, side[torch.from_numpy(held)]) for side in (features.first, features.second)
        )
        found = PairedFeatures(found, *places)
    return logits_of(fit.head, found)
