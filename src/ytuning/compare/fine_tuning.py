"""Training the encoder itself, what people do without a frozen one: full fine-tuning, LoRA by PEFT, and SetFit."""

from __future__ import annotations

import itertools
import math
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers

from ytuning.data.dataset import TextInput
from ytuning.data.kinds import Loss, TaskKind
from ytuning.encoder.download import find_encoder, weights_hash
from ytuning.encoder.encoder import Encoder
from ytuning.encoder.tokens import TokenizedTexts, plan_batches
from ytuning.errors import EncoderError, InputError
from ytuning.progress import Progress
from ytuning.system.machine import require
from ytuning.training.batches import shuffled_batches
from ytuning.training.joint import rate_share

__all__ = [
    "FULL_RATES",
    "LORA_RATES",
    "SetFitResult",
    "TunedEncoder",
    "TuningConfig",
    "TuningRows",
    "full_fine_tuning",
    "load_setfit",
    "lora",
    "setfit",
    "setfit_pairs",
]

# Maximum number of tokens, padding included, in a batch that needs no gradients.
EVALUATED_TOKENS = 4096
# The first rate suits small encoders; 2e-5 to 5e-5 is usual for large ones.
FULL_RATES = (1e-4, 3e-5, 3e-4)
LORA_RATES = (1e-3, 3e-4, 3e-3)
"""Learning rates worth a search; the first is taken without one."""
# This is the usual factor in PEFT.
LORA_ALPHA = 16
# SetFit makes this many pairs of each kind for a row, as published, up to a total; else training would take days.
SETFIT_PAIRS, SETFIT_ALL_PAIRS = 20, 20_000
SETFIT_BATCH_SIZE = 32
# Probabilities of SetFit are clipped to this minimum, because a logit is their logarithm.
EDGE = 1e-9

_generators_in_use = threading.Lock()


@dataclass(frozen=True)
class TuningConfig:
    """How an encoder is trained; AdamW with linear warm-up and decay.

    Attributes:
        learning_rate: highest rate.
        epochs: passes over the train rows, each followed by a validation; the best one is taken...
        patience: ...and so many in a row that are no better than the best end the training.
        batch_size: rows in a step.
        weight_decay: weight decay of AdamW.
        warmup: share of all steps in which the rate rises.
        clip_norm: largest norm of the gradient.
        checkpointing: compute activations twice instead of keeping them: slower, in less memory.
        most_steps: end after so many steps, to measure what one takes; the rates are still those of all epochs.
    """

    learning_rate: float
    epochs: int = 5
    patience: int = 2
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0
    checkpointing: bool = False
    most_steps: int | None = None


@dataclass(frozen=True)
class TuningRows:
    """The rows that an encoder is trained on.

    Attributes:
        target: kind of the task.
        inputs: texts, or pairs as one text, of all rows.
        targets: targets of all rows, as ``target`` encodes them.
        train: positions of rows to train on.
        validation: positions of rows that choose the epoch and, of several, the learning rate.
    """

    target: TaskKind
    inputs: Sequence[TextInput]
    targets: np.ndarray
    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class TunedEncoder:
    """An encoder that was trained for one task, a classifier on it.

    Attributes:
        model: a sequence classification model of transformers (for LoRA in PEFT's wrapper), in evaluation mode.
        encoder: the encoder that gives the tokenizer, arithmetic and device.
        parameters: number of trained parameters.
        planned_steps: number of steps in all epochs.
        step_seconds: seconds of each step that was taken.
        validation_seconds: seconds of each validation.
        validation_scores: mean of the kind's `row_scores` at each validation (of a single-label task
            accuracy); the model is that of the best.
        validation_logits: (validation rows, C) float32 of the best.
        learning_rate: learning rate of the chosen training.
        rates: the best validation score of each learning rate that was tried.
    """

    model: Any
    encoder: Encoder
    parameters: int
    planned_steps: int
    step_seconds: list[float] = field(default_factory=list)
    validation_seconds: list[float] = field(default_factory=list)
    validation_scores: list[float] = field(default_factory=list)
    validation_logits: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    learning_rate: float = 0.0
    rates: dict[float, float] = field(default_factory=dict)

    def logits(self, inputs: Sequence[TextInput]) -> np.ndarray:
        """Logits (inputs, C) float32, in their order; of regression tasks those of two anchors."""
        return _logits(self.model, self.encoder, self.encoder.tokenize(inputs), np.arange(len(inputs)))


def full_fine_tuning(
    encoder: Encoder,
    rows: TuningRows,
    *,
    config: TuningConfig | None = None,
    rates: Sequence[float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TunedEncoder:
    """Train every weight of the encoder and the classifier that transformers puts on its architecture.

    In bf16, where the encoder computes in it, products are in bf16 and weights and their sums in fp32.

    Args:
        encoder: gives the weights to start from, the tokenizer, maximum length, arithmetic and device; not changed.
        rows: rows to train on; the loss is that of a head, without label smoothing.
        config: default: the first of ``FULL_RATES``.
        rates: learning rates to try instead of the config's, each in a whole training.
        seed: seed of the classifier's weights, the order of rows and dropout.
        progress: is told every step.

    Raises:
        EncoderError: transformers has no classifier for the encoder's architecture.
    """
    config = config or TuningConfig(FULL_RATES[0])
    data = _Data(encoder, rows)
    return _best_rate(lambda: _classifier(data, torch.float32), data, config, rates, seed, progress)


def lora(
    encoder: Encoder,
    rows: TuningRows,
    *,
    config: TuningConfig | None = None,
    rates: Sequence[float] | None = None,
    rank: int = 8,
    modules: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TunedEncoder:
    """Train low-rank changes of the attention's projections (LoRA, arXiv 2106.09685) and a classifier, by PEFT.

    The frozen weights are kept in the encoder's arithmetic, what is trained in fp32. A change of ``rank`` is multiplied
    by ``LORA_ALPHA / rank``. ``modules`` names the changed linear layers; the default is PEFT's for the architecture,
    query and value. The other arguments are those of :func:`full_fine_tuning`.

    Raises:
        EncoderError: transformers has no classifier for the encoder's architecture.
        InputError: PEFT knows no modules of that architecture, or has none of the given name.
        MissingExtraError: PEFT is not installed.
    """
    peft = require("peft", "peft")
    form = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.1,
        target_modules=None if modules is None else list(modules),
    )

    data = _Data(encoder, rows)

    def changed_model() -> Any:
        model = _classifier(data, _arithmetic(encoder))
        try:
            with warnings.catch_warnings():
                # PEFT uses names that transformers has deprecated.
                warnings.simplefilter("ignore", FutureWarning)
                model = peft.get_peft_model(model, form)
        except ValueError as error:
            raise InputError(
                f"PEFT cannot change {'its default modules' if modules is None else list(modules)} of "
                f"{encoder.identity.name!r}: {error}. Name linear layers of the encoder with modules=[...]"
            ) from error
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return model

    return _best_rate(changed_model, data, config or TuningConfig(LORA_RATES[0]), rates, seed, progress)


class _Data:
    """What a model is trained on: tokens, and targets on the encoder's device, of all rows, and the loss of a batch."""

    def __init__(self, encoder: Encoder, rows: TuningRows) -> None:
        self.encoder, self.train, self.validation, self.target = encoder, rows.train, rows.validation, rows.target
        self.tokens = encoder.tokenize(rows.inputs)
        goal = torch.from_numpy(np.asarray(rows.targets, rows.target.dtype))
        self.goal = goal.to(encoder.device)
        self.loss: Loss = rows.target.loss("cross_entropy", goal[torch.from_numpy(rows.train)])

    def validated(self, model: Any) -> tuple[np.ndarray, float]:
        """Logits (N, C) of the validation rows and their mean score, minus infinity for a model that has diverged."""
        logits = _logits(model, self.encoder, self.tokens, self.validation)
        goal = self.goal.cpu()[torch.from_numpy(self.validation)]
        score = float(self.target.row_scores(torch.from_numpy(logits), goal).mean())
        return logits, score if np.isfinite(logits).all() else -math.inf


def _arithmetic(encoder: Encoder) -> torch.dtype:
    return torch.bfloat16 if encoder.identity.precision == "bf16" else torch.float32


def _best_rate(
    model_of: Callable[[], Any],
    rows: _Data,
    config: TuningConfig,
    rates: Sequence[float] | None,
    seed: int,
    progress: Progress | None,
) -> TunedEncoder:
    """The training whose rate validates best, of equal ones the first; one model is kept, not one for each rate."""
    scores: dict[float, float] = {}
    best: TunedEncoder | None = None
    for rate in rates or [config.learning_rate]:
        with _process_generators(rows.encoder.device, seed):
            tuned = _train(model_of(), rows, replace(config, learning_rate=rate), progress or Progress(), seed)
        if best is None or max(tuned.validation_scores) > max(scores.values()):
            best = tuned
        scores[rate] = max(tuned.validation_scores)
    assert best is not None
    return replace(best, rates=scores)


@contextmanager
def _process_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Within, the generators of the process start from ``seed``; afterwards they go on where they were.

    transformers, PEFT and SetFit take no generator and draw from these, so only one model is trained at a time. Other
    threads must not draw from them meanwhile, or the same seed gives another model.
    """
    with _generators_in_use, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        of_python, of_numpy = random.getstate(), np.random.get_state()
        try:
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _classifier(rows: _Data, dtype: torch.dtype) -> Any:
    """The published weights with a new classifier, on the encoder's device."""
    name = rows.encoder.identity.name
    folder = find_encoder(name)
    weights_hash(folder, name)
    logs = transformers.utils.logging
    level, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    # Transformers would warn that the classifier has new weights, which is intended here.
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=rows.target.outputs, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except ValueError as error:
        raise EncoderError(
            f"transformers has no classifier for {name!r}: {str(error).splitlines()[0]}. Compare with another encoder"
        ) from error
    finally:
        logs.set_verbosity(level)
        if bar:
            logs.enable_progress_bar()
    # Buffers keep their precision, because rotary frequencies must stay exact.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.to(rows.encoder.device)


def _train(model: Any, rows: _Data, config: TuningConfig, progress: Progress, seed: int) -> TunedEncoder:
    """Train what requires a gradient, epoch by epoch, and take the weights of the epoch that validates best."""
    if config.checkpointing:
        # Versions of transformers before 5 use the second name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    per_epoch = math.ceil(len(rows.train) / config.batch_size)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    result = TunedEncoder(model, rows.encoder, sum(map(torch.numel, chosen)), config.epochs * per_epoch)
    optimizer = torch.optim.AdamW(chosen, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    batches = shuffled_batches(
        torch.from_numpy(rows.tokens.lengths), torch.from_numpy(rows.train), config.batch_size, seed
    )
    most = min(result.planned_steps, config.most_steps or result.planned_steps)
    scores = result.validation_scores
    best: tuple[list[torch.Tensor], np.ndarray] | None = None
    while len(result.step_seconds) < most:
        model.train()
        for batch in itertools.islice(batches, min(per_epoch, most - len(result.step_seconds))):
            start = time.perf_counter()
            share = rate_share(len(result.step_seconds), result.planned_steps, config.warmup)
            _step(model, rows, batch.numpy(), optimizer, config.learning_rate * share, config.clip_norm)
            result.step_seconds.append(time.perf_counter() - start)
            progress.step("tune", len(result.step_seconds), most)
        start = time.perf_counter()
        logits, score = rows.validated(model)
        result.validation_seconds.append(time.perf_counter() - start)
        if best is None or score > max(scores):
            best = [parameter.detach().cpu().clone() for parameter in chosen], logits
        scores.append(score)
        note = f"validation {rows.target.score_name} {rows.target.shown_score(score)}"
        progress.step("tune", len(result.step_seconds), most, note)
        if len(scores) - 1 - int(np.argmax(scores)) >= config.patience:
            break
    # Every training has at least one step, and so at least one validation.
    assert best is not None
    for parameter, value in zip(chosen, best[0], strict=True):
        parameter.data.copy_(value)
    model.eval()
    return replace(result, validation_logits=best[1], learning_rate=config.learning_rate)


def _step(
    model: Any, rows: _Data, batch: np.ndarray, optimizer: torch.optim.Optimizer, rate: float, clip_norm: float
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    goal = rows.goal[torch.from_numpy(batch).to(rows.goal.device)]
    loss = rows.loss(_forward(model, rows.encoder, rows.tokens, batch), goal)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), clip_norm)
    optimizer.step()
    if rows.encoder.device.type == "cuda":
        # The GPU works asynchronously, so without waiting this step's time would be counted in a later one.
        torch.cuda.synchronize()


def _logits(model: Any, encoder: Encoder, tokens: TokenizedTexts, rows: np.ndarray) -> np.ndarray:
    model.eval()
    out: np.ndarray | None = None
    with torch.inference_mode():
        for batch in plan_batches(tokens.lengths[rows], EVALUATED_TOKENS, "padded"):
            logits = _forward(model, encoder, tokens, rows[batch]).cpu().numpy()
            out = np.empty((len(rows), logits.shape[1]), np.float32) if out is None else out
            out[batch] = logits
    if out is None:
        raise ValueError("there are no rows")
    return out


def _forward(model: Any, encoder: Encoder, tokens: TokenizedTexts, rows: np.ndarray) -> torch.Tensor:
    """Logits (B, C) float32 of some rows, padded to the longest of them."""
    ids, types, mask = tokens.padded(rows, getattr(model.config, "pad_token_id", None) or 0)
    arguments = {"input_ids": ids, "attention_mask": mask}
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        arguments["token_type_ids"] = types
    on_device = {key: torch.from_numpy(value).long().to(encoder.device) for key, value in arguments.items()}
    dtype = _arithmetic(encoder)
    with torch.autocast(encoder.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(**on_device).logits.float()


# --- SetFit ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetFitResult:
    """A model that SetFit has trained.

    Attributes:
        model: SetFit's own.
        parameters: number of trained parameters.
        planned_steps: number of steps in the one epoch over the pairs.
        step_ends: when each step that was taken ended, in seconds of ``time.perf_counter``.
    """

    model: Any
    parameters: int
    planned_steps: int
    step_ends: list[float]

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return the logits (texts, C) float32."""
        shares = np.asarray(self.model.predict_proba(list(texts), as_numpy=True, show_progress_bar=False))
        return np.log(shares.clip(EDGE)).astype(np.float32)


def load_setfit() -> Any:
    """The package SetFit, which takes seconds to import.

    Raises:
        MissingExtraError: SetFit is not installed.
        InputError: SetFit does not work with the other installed packages, often because it lags behind transformers.
    """
    try:
        return require("setfit", "benchmark")
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(
            f"SetFit does not work with the versions installed: {type(error).__name__}: {error}. Install those that it "
            "was tested with: pip install -c constraints.txt 'ytuning[benchmark]'"
        ) from error


def setfit_pairs(rows: int) -> int:
    """Pairs of each kind for each of so many train rows."""
    return max(1, min(SETFIT_PAIRS, SETFIT_ALL_PAIRS // rows))


def setfit(
    encoder: Encoder,
    texts: Sequence[str],
    targets: np.ndarray,
    *,
    pairs: int = 1,
    most_steps: int | None = None,
    seed: int = 0,
) -> SetFitResult:
    """SetFit (arXiv 2209.11055): pairs of rows, of one label or two, tune a copy of the encoder for one epoch.

    Then logistic regression is fitted on it; there are no validation rows.

    Args:
        encoder: gives the weights to start from and the device; not changed.
        texts: texts of the training rows.
        targets: (rows,) label ids.
        pairs: number of pairs with the same label for each row, and as many with different labels.
        most_steps: end after so many steps, to measure what one takes.
        seed: seed of the pairs and their order.

    Raises:
        InputError, MissingExtraError: as :func:`load_setfit`.
    """
    setfit = load_setfit()
    datasets = require("datasets", "benchmark")
    ends: list[float] = []

    class Ticking(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with _process_generators(encoder.device, seed), tempfile.TemporaryDirectory() as root:
        rows = datasets.Dataset.from_dict({"text": list(texts), "label": targets.tolist()})
        model = setfit.SetFitModel.from_pretrained(str(find_encoder(encoder.identity.name)), device=str(encoder.device))
        settings = setfit.TrainingArguments(
            output_dir=root,
            batch_size=SETFIT_BATCH_SIZE,
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
    return SetFitResult(model, trained, -(-2 * pairs * len(texts) // SETFIT_BATCH_SIZE), ends)
