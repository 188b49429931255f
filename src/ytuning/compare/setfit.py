"""SetFit (arXiv 2209.11055): pairs of rows, of one label or two, tune the encoder; then logistic regression on it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ytuning.encoder.download import find_encoder
from ytuning.encoder.encoder import Encoder
from ytuning.errors import InputError
from ytuning.system.machine import require

__all__ = ["SetFitResult", "load_setfit", "setfit"]

BATCH_SIZE = 32
EDGE = 1e-9  # the least probability, whose logarithm is a logit


@dataclass(frozen=True)
class SetFitResult:
    """A model of SetFit.

    Attributes:
        model: SetFit's own.
        parameters: numbers that were trained.
        planned_steps: of the one epoch over the pairs.
        step_ends: when each step that was taken ended, in seconds of ``time.perf_counter``.
    """

    model: Any
    parameters: int
    planned_steps: int
    step_ends: list[float]

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logits (texts, C) float32."""
        found = np.asarray(self.model.predict_proba(list(texts), as_numpy=True, show_progress_bar=False))
        return np.log(found.clip(EDGE)).astype(np.float32)


def load_setfit() -> Any:
    """The package SetFit, which takes seconds to import.

    Raises:
        MissingExtraError: it is not installed.
        InputError: it is, but does not work with the other packages that are: it lags behind transformers.
    """
    try:
        return require("setfit", "benchmark")
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(
            f"SetFit does not work with the versions installed: {type(error).__name__}: {error}. Install those that it "
            "was tested with: pip install -c constraints.txt 'ytuning[benchmark]'"
        ) from error


def setfit(
    encoder: Encoder,
    texts: Sequence[str],
    targets: np.ndarray,
    *,
    pairs: int = 1,
    most_steps: int | None = None,
    seed: int = 0,
) -> SetFitResult:
    """Tune a copy of the encoder for one epoch over pairs of train rows; no validation rows.

    Args:
        encoder: gives the weights to start from and the device; not changed.
        texts: of the train rows.
        targets: (rows,) label ids.
        pairs: of one label, and as many of two, for each row.
        most_steps: end after so many steps, to measure what one takes.
        seed: of the pairs and their order.

    Raises:
        InputError, MissingExtraError: as :func:`load_setfit`.
    """
    setfit = load_setfit()
    datasets = require("datasets", "benchmark")
    import transformers

    ends: list[float] = []

    class Ticking(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as root:
        rows = datasets.Dataset.from_dict({"text": list(texts), "label": targets.tolist()})
        model = setfit.SetFitModel.from_pretrained(str(find_encoder(encoder.identity.name)), device=str(encoder.device))
        settings = setfit.TrainingArguments(
            output_dir=root,
            batch_size=BATCH_SIZE,
            num_epochs=1,
            num_iterations=pairs,
            max_steps=most_steps or -1,
            seed=seed,
            report_to="none",
            save_strategy="no",
            show_progress_bar=False,
        )
        setfit.Trainer(model=model, args=settings, train_dataset=rows, callbacks=[Ticking()]).train()
    trained = sum(parameter.numel() for parameter in model.model_body.parameters())
    trained += model.model_head.coef_.size + model.model_head.intercept_.size
    return SetFitResult(model, trained, -(-2 * pairs * len(texts) // BATCH_SIZE), ends)
