"""How a task does before any training: texts compared with the labels' own texts."""

from __future__ import annotations

from contextlib import suppress

import torch

from ytuning.data.splits import TaskRows
from ytuning.evaluation.evaluate import evaluate
from ytuning.features.features import Features
from ytuning.heads.pooled import LabelTuningConfig, LabelTuningHead
from ytuning.training.calibration import fit_calibration
from ytuning.training.fit import logits_of
from ytuning.training.joint import start_label_rows

__all__ = ["zero_shot"]


def zero_shot(features: Features, rows: TaskRows) -> dict[str, dict[str, float]]:
    """Metrics of ``validation`` and ``test`` rows from label rows that are the labels' texts; none without such texts.

    Validation rows fit the temperature and, of a multi-label task, the thresholds, as they do for a trained head.

    Args:
        features: of all rows.
        rows: of the task.
    """
    found: dict[str, dict[str, float]] = {}
    if not len(rows.label_texts):
        return found
    head = LabelTuningHead(
        LabelTuningConfig(), labels=rows.target.outputs, layers=features.layers, width=features.width
    ).eval()
    start_label_rows(head, features, rows.train, rows.label_texts, rows.truth)
    with suppress(KeyboardInterrupt):  # the heads are trained, and should not be lost for this
        logits = logits_of(head, features, torch.from_numpy(rows.validation))
        calibration = fit_calibration(rows.target, logits, rows.truth[rows.validation])
        for split, places in (("validation", rows.validation), ("test", rows.test)):
            if len(places):
                each = logits if split == "validation" else logits_of(head, features, torch.from_numpy(places))
                found[split] = evaluate(rows.target, calibration, rows.truth[places], each).metrics
    return found
