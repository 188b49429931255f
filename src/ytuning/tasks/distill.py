"""What a default head says of texts without labels -> the light head beside it learns that, too.

This is distillation (arXiv 1503.02531). A light head is limited by its rows more than a default head is, and texts
without labels are often there for nothing. The light head learns the labels of its own rows and, of the other texts,
the probabilities of the default head that has not learned from the validation rows. So these stay new to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ytuning.data.dataset import TextInput
from ytuning.data.kinds import TaskKind
from ytuning.encoder.encoder import Encoder
from ytuning.errors import InputError, quantity
from ytuning.evaluation.evaluate import EvaluatedRows
from ytuning.features.features import stored_inputs
from ytuning.features.pools import RowSet, row_keys, stored_pools
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairMode
from ytuning.progress import Progress
from ytuning.tasks.add_cascade import why_no_cascade
from ytuning.tasks.light_labels import LightRows, scope_of_fit
from ytuning.tasks.train import Trained
from ytuning.training.batches import sample_rows
from ytuning.training.calibration import fit_calibration
from ytuning.training.fit import logits_of
from ytuning.training.light import MOST_ROWS, WHOLE, LightJob, fit_light

__all__ = ["distilled"]


def distilled(
    default: Trained,
    light: Trained,
    unlabelled: Sequence[TextInput],
    encoder: Encoder,
    store: FeatureStore,
    progress: Progress,
    *,
    abstain_at: float | None = None,
) -> tuple[Trained, str]:
    """The training of a light head that has also learned from what a default head says of texts without labels.

    Args:
        default: the training of the default head.
        light: the training of the light head, with the same validation rows.
        unlabelled: texts or pairs, as those of the training. Those that are blank, are among its rows or come again are
            left out, and so are those beyond the number of rows that a light head reads at most.
        encoder: reads the texts.
        store: has the texts that the light head was fitted on.
        progress: is told what the encoder reads.
        abstain_at: the precision below which the task gives no label.

    Returns:
        The training, or as it was, and a sentence that says which.

    Raises:
        ValueError: the two are no trainings of the same task (`add_cascade.why_no_cascade`).
        StoreError: the store cannot be used.
    """
    task, target = light.task, light.task.target
    name = f"task {task.name!r}"
    if why_no_cascade(default, light):
        return light, f"{name}: no light head learns from texts without labels, because there is no cascade"
    rows = LightRows(task, encoder, store).rows
    new = _new_texts(rows, unlabelled, task.pair_mode)
    if not new:
        return light, f"{name}: no text without a label is new or can be learned, too"
    mode, codec = task.pair_mode, task.codec.name
    features, _ = stored_inputs(new, encoder, store, progress, states=default.task.states, pair_mode=mode, codec=codec)
    given = replace(default.task.calibration, abstain_below=None).answers(
        target, logits_of(default.fit.chosen_head, features)
    )
    stored_pools(new, encoder, store, progress, states=task.states, pair_mode=mode, codec=codec)
    answers, held = given.values.astype(rows.targets.dtype), np.zeros(len(new), bool)
    together = rows.with_rows(RowSet.of_inputs(new, mode, answers, held))
    pools = together.features(encoder, store, states=task.states, codec=codec)
    if pools is None:
        raise LightRows(task, encoder, store).lost()
    job = LightJob(
        target,
        together.targets,
        np.flatnonzero(together.held),
        shares=np.concatenate((_shares(target, rows.targets), np.rint(WHOLE * given.probabilities).astype(np.int8))),
    )
    (fitted,) = fit_light(
        pools,
        [job],
        rows=np.arange(len(together.held)),
        row_weights=target.row_weights(task.training["label_weights"], together.targets),
        refit=light.fit.refitted,
    )
    judged = light.judged["validation"]
    try:
        calibration = fit_calibration(
            target,
            fitted.validation_logits,
            judged.truth,
            smoothing=task.calibration.smoothing,
            abstain_at=abstain_at,
        )
    except InputError:
        return light, f"{name}: the light head stays as it was, as the other would not reach the precision"
    scope = None
    if task.scope is not None:
        train = np.flatnonzero(~rows.held)
        scope = scope_of_fit(fitted, target, together, pools, calibration.temperature, task, train=train)
    learned = replace(
        light,
        task=replace(task, head=fitted.head, calibration=calibration, scope=scope),
        judged={"validation": EvaluatedRows(judged.data, judged.truth, fitted.validation_logits, fitted.chosen_head)},
    )
    return learned, f"{name}: the light head has also learned from {quantity(len(new), 'text')} without labels"


def _new_texts(rows: RowSet, unlabelled: Sequence[TextInput], pair_mode: PairMode | None) -> list[TextInput]:
    """Those that are not blank nor among the rows, each once, and as many of them as there is room for."""
    known, new = {key.tobytes() for key in rows.keys}, dict[bytes, TextInput]()
    for text, key in zip(unlabelled, row_keys(unlabelled, pair_mode), strict=True):
        if key.tobytes() not in known and any(part is not None and part.strip() for part in text):
            new.setdefault(key.tobytes(), text)
    texts = list(new.values())
    return [texts[place] for place in sample_rows(np.arange(len(texts)), max(0, MOST_ROWS - len(rows.held)))]


def _shares(target: TaskKind, targets: np.ndarray) -> np.ndarray:
    """(N, C) int8: all of a row for each of its labels (`LightJob.shares`)."""
    flags = targets if target.gives_many else np.eye(target.outputs, dtype=np.int8)[targets]
    return WHOLE * flags.astype(np.int8)
