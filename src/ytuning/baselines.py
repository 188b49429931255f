"""The opponents: what people would use instead, on the same stored features or by training the encoder itself."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from ytuning.encoder import Encoder
from ytuning.errors import EncoderError, InputError, MissingExtraError
from ytuning.features import Features, ordered_batches
from ytuning.progress import Progress
from ytuning.sources import find_encoder, weights_hash
from ytuning.tokens import TextInput, TokenizedTexts

__all__ = [
    "LogisticResult",
    "TunedEncoder",
    "TuningConfig",
    "full_fine_tuning",
    "lora",
    "mean_pooled",
    "tuned_logistic_regression",
]

STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SORTED_BATCHES = 32  # shuffled rows are sorted by length within so many batches, which saves most of the padding
WARM_STEPS = 3  # the first steps, which allocate and compile, are not timed


def mean_pooled(features: Features) -> np.ndarray:
    """(rows, L * D) float32: the mean over tokens of every stored hidden state, side by side."""
    pooled = np.empty((len(features), features.layers * features.width), np.float32)
    for rows in ordered_batches(features.lengths):
        values, mask = features.batch(rows)
        mean = (values.float() * mask[..., None, None]).sum(1) / mask.sum(1)[:, None, None]
        pooled[rows.numpy()] = mean.flatten(1).numpy()
    features.release()
    return pooled


@dataclass(frozen=True)
class LogisticResult:
    """A tuned logistic regression.

    Attributes:
        model: fitted on train and validation rows with the chosen strength.
        strength: scikit-learn's ``C``, chosen on validation rows.
        validation_accuracy: of that strength, fitted on train rows only.
    """

    model: Pipeline
    strength: float
    validation_accuracy: float


def tuned_logistic_regression(
    pooled: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
) -> LogisticResult:
    """Logistic regression on standardised pooled features; validation rows choose the strength, then all rows are used.

    Args:
        pooled: (rows, features), see :func:`mean_pooled`.
        targets: (rows,) label ids.
        train: positions of rows to fit on.
        validation: positions of rows that choose the strength.
        strengths: values of ``C`` to try.
    """

    def fit(rows: np.ndarray, strength: float) -> Pipeline:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        return model.fit(pooled[rows], targets[rows])

    scores = {strength: fit(train, strength).score(pooled[validation], targets[validation]) for strength in strengths}
    best = max(scores, key=lambda strength: scores[strength])
    return LogisticResult(fit(np.union1d(train, validation), best), best, float(scores[best]))


# --- training the encoder itself ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TuningConfig:
    """How an encoder is trained; AdamW with linear warm-up and decay.

    Attributes:
        learning_rate: highest rate.
        epochs: passes over the train rows, each followed by a validation; the best one is taken...
        patience: ...and so many in a row that are no better than the best end the training.
        batch_size: rows in a step.
        weight_decay: of AdamW.
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
class TunedEncoder:
    """An encoder that was trained for one task, a classifier on it.

    Attributes:
        model: a sequence classification model of transformers (for LoRA in PEFT's wrapper), in evaluation mode.
        encoder: whose tokenizer, arithmetic and device it uses.
        parameters: numbers that were trained.
        planned_steps: of all epochs.
        step_seconds: of each step that was taken.
        validation_seconds: of each validation.
        validation_accuracy: of each validation; the model is that of the best.
    """

    model: Any
    encoder: Encoder
    parameters: int
    planned_steps: int
    step_seconds: list[float] = field(default_factory=list)
    validation_seconds: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)

    def logits(self, inputs: Sequence[TextInput]) -> np.ndarray:
        """Logits (inputs, C) float32, in their order."""
        return _logits(self.model, self.encoder, self.encoder.tokenize(inputs), np.arange(len(inputs)))

    def planned_seconds(self, epochs: int) -> float:
        """What all epochs with their validations would take, by the mean of the steps after the first few."""
        warm = self.step_seconds[WARM_STEPS:] or self.step_seconds
        return self.planned_steps * float(np.mean(warm)) + epochs * float(np.mean(self.validation_seconds))


def full_fine_tuning(
    encoder: Encoder,
    inputs: Sequence[TextInput],
    targets: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    config: TuningConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TunedEncoder:
    """Train every weight of the encoder and the classifier that transformers puts on its architecture.

    In bf16, where the encoder computes in it, products are in bf16 and weights and their sums in fp32.

    Args:
        encoder: gives the weights to start from, the tokenizer, maximum length, arithmetic and device; not changed.
        inputs: texts or pairs of all rows.
        targets: (rows,) label ids.
        train: positions of rows to train on.
        validation: positions of rows that choose the epoch.
        config: default: a learning rate of 1e-4, which suits small encoders; 2e-5 is usual for large ones.
        seed: of the classifier's weights, the order of rows and dropout.
        progress: is told every step.

    Raises:
        EncoderError: transformers has no classifier for the encoder's architecture.
    """
    config = config or TuningConfig(learning_rate=1e-4)
    with _seeded(encoder, seed):
        model = _classifier(encoder, int(targets.max()) + 1, torch.float32)
        return _tuned(model, encoder, inputs, targets, train, validation, config, progress or Progress(), seed)


def lora(
    encoder: Encoder,
    inputs: Sequence[TextInput],
    targets: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    config: TuningConfig | None = None,
    rank: int = 8,
    alpha: int = 16,
    modules: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TunedEncoder:
    """Train low-rank changes of the attention's projections (LoRA, arXiv 2106.09685) and a classifier, by PEFT.

    The frozen weights are kept in the encoder's arithmetic, what is trained in fp32.

    Args:
        encoder: as for :func:`full_fine_tuning`, and so the other arguments that it has.
        inputs: texts or pairs of all rows.
        targets: (rows,) label ids.
        train: positions of rows to train on.
        validation: positions of rows that choose the epoch.
        config: default: a learning rate of 1e-3.
        rank: of a change.
        alpha: a change is multiplied by ``alpha / rank``.
        modules: names of the changed linear layers; default: PEFT's for the architecture, query and value.
        seed: of new weights, the order of rows and dropout.
        progress: is told every step.

    Raises:
        EncoderError: transformers has no classifier for the encoder's architecture.
        InputError: PEFT knows no modules of that architecture, or has none of the given name.
        MissingExtraError: PEFT is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "peft") from error
    config = config or TuningConfig(learning_rate=1e-3)
    form = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.1,
        target_modules=None if modules is None else list(modules),
    )
    with _seeded(encoder, seed):
        model = _classifier(encoder, int(targets.max()) + 1, _arithmetic(encoder))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by names that it is to drop
                model = peft.get_peft_model(model, form)
        except ValueError as error:
            raise InputError(
                f"PEFT cannot change {'its default modules' if modules is None else list(modules)} of "
                f"{encoder.identity.name!r}: {error}. Name linear layers of the encoder with modules=[...]"
            ) from error
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return _tuned(model, encoder, inputs, targets, train, validation, config, progress or Progress(), seed)


def _arithmetic(encoder: Encoder) -> torch.dtype:
    return torch.bfloat16 if encoder.identity.precision == "bf16" else torch.float32


@contextmanager
def _seeded(encoder: Encoder, seed: int) -> Iterator[None]:
    """Random numbers of a seed; the caller's go on afterwards where they were."""
    with torch.random.fork_rng(devices=[encoder.device] if encoder.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _classifier(encoder: Encoder, labels: int, dtype: torch.dtype) -> Any:
    """The published weights with a new classifier, on the encoder's device."""
    name = encoder.identity.name
    folder = find_encoder(name)
    weights_hash(folder, name)
    logs = transformers.utils.logging
    level, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()  # it warns that the classifier is new, which it is meant to be
    logs.disable_progress_bar()
    try:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=labels, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except ValueError as error:
        raise EncoderError(
            f"transformers has no classifier for {name!r}: {str(error).splitlines()[0]}. Compare with another encoder"
        ) from error
    finally:
        logs.set_verbosity(level)
        if bar:
            logs.enable_progress_bar()
    for parameter in model.parameters():  # not the buffers: rotary frequencies must stay exact
        parameter.data = parameter.data.to(dtype)
    return model.to(encoder.device)


def _tuned(
    model: Any,
    encoder: Encoder,
    inputs: Sequence[TextInput],
    targets: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    config: TuningConfig,
    progress: Progress,
    seed: int,
) -> TunedEncoder:
    """Train what requires a gradient, epoch by epoch, and take the weights of the epoch that validates best."""
    if config.checkpointing:
        # The second name is that of transformers before 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    tokens = encoder.tokenize(inputs)
    per_epoch = math.ceil(len(train) / config.batch_size)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    result = TunedEncoder(model, encoder, sum(map(torch.numel, chosen)), config.epochs * per_epoch)
    optimizer = torch.optim.AdamW(chosen, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    batches = _sorted_batches(tokens.lengths, train, config.batch_size, seed)
    most = min(result.planned_steps, config.most_steps or result.planned_steps)
    best: list[torch.Tensor] = []
    while len(result.step_seconds) < most:
        model.train()
        for batch in itertools.islice(batches, min(per_epoch, most - len(result.step_seconds))):
            start = time.perf_counter()
            rate = _rate(len(result.step_seconds), result.planned_steps, config)
            _step(model, encoder, tokens, batch, targets, optimizer, rate, config.clip_norm)
            result.step_seconds.append(time.perf_counter() - start)
            progress.step("tune", len(result.step_seconds), most)
        start = time.perf_counter()
        logits = _logits(model, encoder, tokens, validation)
        accuracy = float((logits.argmax(1) == targets[validation]).mean())
        result.validation_seconds.append(time.perf_counter() - start)
        if accuracy > max(result.validation_accuracy, default=-1.0):
            best = [parameter.detach().cpu().clone() for parameter in chosen]
        result.validation_accuracy.append(accuracy)
        progress.step("tune", len(result.step_seconds), most, f"validation accuracy {accuracy:.4f}")
        if len(result.validation_accuracy) - 1 - int(np.argmax(result.validation_accuracy)) >= config.patience:
            break
    for parameter, value in zip(chosen, best, strict=True):
        parameter.data.copy_(value)
    model.eval()
    return result


def _rate(step: int, total: int, config: TuningConfig) -> float:
    """Learning rate of a step: linear warm-up, linear decay."""
    warmup = max(1, round(config.warmup * total))
    return config.learning_rate * min((step + 1) / warmup, (total - step) / max(1, total - warmup))


def _step(
    model: Any,
    encoder: Encoder,
    tokens: TokenizedTexts,
    batch: np.ndarray,
    targets: np.ndarray,
    optimizer: torch.optim.Optimizer,
    rate: float,
    clip_norm: float,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    goal = torch.from_numpy(targets[batch].astype(np.int64)).to(encoder.device)
    loss = functional.cross_entropy(_forward(model, encoder, tokens, batch), goal)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), clip_norm)
    optimizer.step()
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()  # or its seconds would be those of later work


def _logits(model: Any, encoder: Encoder, tokens: TokenizedTexts, rows: np.ndarray) -> np.ndarray:
    model.eval()
    out: np.ndarray | None = None
    with torch.inference_mode():
        for batch in ordered_batches(torch.from_numpy(tokens.lengths[rows])):
            logits = _forward(model, encoder, tokens, rows[batch.numpy()]).cpu().numpy()
            out = np.empty((len(rows), logits.shape[1]), np.float32) if out is None else out
            out[batch.numpy()] = logits
    if out is None:
        raise ValueError("there are no rows")
    return out


def _forward(model: Any, encoder: Encoder, tokens: TokenizedTexts, rows: np.ndarray) -> torch.Tensor:
    """Logits (B, C) float32 of some rows, padded to the longest of them."""
    lengths = tokens.lengths[rows]
    positions = np.arange(lengths.max())
    mask = positions < lengths[:, None]  # (B, T)
    places = tokens.offsets[rows][:, None] + np.minimum(positions, lengths[:, None] - 1)
    padding = getattr(model.config, "pad_token_id", None) or 0
    arguments = {"input_ids": np.where(mask, tokens.ids[places], padding), "attention_mask": mask}
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        arguments["token_type_ids"] = np.where(mask, tokens.types[places], 0)
    on_device = {key: torch.from_numpy(value).long().to(encoder.device) for key, value in arguments.items()}
    dtype = _arithmetic(encoder)
    with torch.autocast(encoder.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(**on_device).logits.float()


def _sorted_batches(lengths: np.ndarray, rows: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Epoch after epoch, every row once in a batch of at most ``size`` rows of similar length."""
    generator = np.random.default_rng(seed)
    while True:
        batches: list[np.ndarray] = []
        shuffled = generator.permutation(rows)
        for first in range(0, len(rows), size * SORTED_BATCHES):
            part = shuffled[first : first + size * SORTED_BATCHES]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches.extend(part[start : start + size] for start in range(0, len(part), size))
        yield from (batches[number] for number in generator.permutation(len(batches)))
