"""The scikit-learn face: a classifier, a classifier of several outputs, and a regressor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from ytuning.data.dataset import Dataset, check_not_blank, from_lists
from ytuning.data.kinds import Answers
from ytuning.data.label_texts import LabelTexts
from ytuning.data.labels import LabelSet, did_you_mean, label_name, quote
from ytuning.data.sequences import as_cells
from ytuning.data.targets import Targets, label_array, label_matrix, label_sets, read_outputs, read_targets
from ytuning.encoder.download import DEFAULT_ENCODER
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import Precision
from ytuning.encoder.tokens import LongText
from ytuning.errors import DataError, InputError, must_be_one_of, quantity
from ytuning.features.store import FeatureStore
from ytuning.heads.pairs import PairChoice
from ytuning.progress import Progress, ProgressBar
from ytuning.tasks.choose_recipe import train_cheapest, train_tasks_cheapest
from ytuning.tasks.evaluate import task_features
from ytuning.tasks.predictor import live_logits, live_logits_of_tasks
from ytuning.tasks.shared_encoder import SharedEncoder, share_encoders
from ytuning.tasks.task import Task, save_task
from ytuning.tasks.train import TrainOptions
from ytuning.tasks.train_many import task_folders
from ytuning.training.fit import logits_of
from ytuning.training.recipes import AUTO_LAYERS, Recipe, preset_recipes, weighing_labels

__all__ = ["YTuningClassifier", "YTuningMultiOutputClassifier", "YTuningRegressor"]


class _Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """What the estimators do; their parameters are those of :class:`YTuningClassifier`."""

    encoder: str
    preset: str
    store: str
    seed: int
    refit: bool
    cache: str | Path | None
    verbose: bool
    keep_features: bool
    precision: Precision
    pairs: PairChoice
    long_text: LongText
    layers: str | Sequence[int] | None
    validation_metrics_: dict[str, Any]
    _shared: SharedEncoder | None

    def _prepare(
        self, weights: str | tuple[float, ...] | None, label_texts: LabelTexts | None
    ) -> tuple[dict[str, Recipe], Encoder, TrainOptions]:
        """What a training takes beside the rows, from the parameters."""
        recipes = {name: weighing_labels(recipe, weights) for name, recipe in preset_recipes(self.preset).items()}
        if not isinstance(self.seed, (int, np.integer)) or not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be a whole number from 0 to {2**32 - 1}. Got {self.seed!r} instead.")
        choosing = self.layers == AUTO_LAYERS
        if self.layers is not None and not choosing:
            layers = _numbers(self.layers)
            recipes = {name: replace(recipe, layers=layers) for name, recipe in recipes.items()}
        encoder = load_encoder(self.encoder, precision=self.precision, long_text=self.long_text)
        return (
            recipes,
            encoder,
            TrainOptions(
                seed=self.seed,
                refit=self.refit,
                codec=self.store,
                pairs=self.pairs,
                layers=AUTO_LAYERS if choosing else None,
                label_texts=label_texts,
            ),
        )

    def _progress(self) -> AbstractContextManager[Progress]:
        return ProgressBar() if self.verbose else nullcontext(Progress())

    def _fit(
        self,
        data: Dataset,
        weights: str | tuple[float, ...] | None = None,
        label_texts: LabelTexts | None = None,
        label_order: Sequence[str] | None = None,
    ) -> None:
        for note in data.notes:
            warnings.warn(note, UserWarning, stacklevel=3)
        recipes, encoder, options = self._prepare(weights, label_texts)
        options = replace(options, label_order=label_order)
        with self._progress() as progress:
            store = FeatureStore(self.cache)
            trained = train_cheapest(data, encoder, store, recipes, options=options, progress=progress)
        if trained.fit.interrupted:
            # An estimator is fitted or it is not. The texts read so far stay stored.
            raise KeyboardInterrupt
        self.task_, self._shared = trained.task, SharedEncoder(encoder)
        self.validation_metrics_ = trained.reports["validation"].metrics
        self.truncated_ = trained.truncated
        _warn_cut(trained.truncated)

    def _logits(self, X: Any) -> np.ndarray:  # noqa: N803  # scikit-learn's names
        check_is_fitted(self, "task_")
        data, shared = from_lists(X), self._loaded_encoder()
        if self.keep_features:
            features, _ = task_features(self.task_, data, shared.encoder, FeatureStore(self.cache))
            logits, truncated = logits_of(self.task_.head, features), features.truncated_rows
        else:
            logits, truncated = live_logits(self.task_, data, shared)
        _warn_cut(int(truncated.sum()))
        return logits

    def _loaded_encoder(self) -> SharedEncoder:
        """The encoder of the fit; a copy of a fitted estimator loads it when it is first used."""
        if self._shared is None:
            (self._shared,) = share_encoders(self._fitted_tasks[:1], encoder=self.encoder)
        return self._shared

    @property
    def _fitted_tasks(self) -> list[Task]:
        return [self.task_]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds: parameters and the task. The encoder's weights stay where they are."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_shared": None} if "_shared" in state else state

    def save(self, folder: str | Path) -> None:
        """Write the trained task as a folder that the command line and `Predictor` read.

        Raises:
            NotFittedError: before ``fit``.
            InputError: the folder cannot be written, or holds files that do not belong to a task.
            WriteError: the disk is full or broken.
        """
        check_is_fitted(self, "task_")
        save_task(replace(self.task_, name=Path(folder).resolve().name), folder)

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that rows are texts, not numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags


class YTuningClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A text classifier on a frozen encoder, with scikit-learn's contract.

    ``X`` is a sequence of texts (list, array or Series) or of pairs ``(text, text)``; ``y`` holds labels of any type
    that NumPy can sort, or, of a multi-label task, is an array or frame (rows, C) of 0 and 1. Token features go
    through the feature store, so that cross-validation, a grid search and later fits read each text with the encoder
    once for each preset.

    Args:
        encoder: name or folder.
        precision: arithmetic of the encoder pass; see `load_encoder`.
        preset: ``"default"``, ``"few-shot"`` (a few rows of each label), ``"paper"``, ``"light"`` (in closed form, for
            many tasks) or ``"auto"``, which trains light and default and keeps light unless it is worse.
        class_weight: ``None``, ``"balanced"`` (rows / (C * rows of the label)), or a mapping from label to the weight
            of its rows in the loss; labels that it does not name weigh 1. Of a multi-label task not a mapping.
        store: how features are stored: ``"fp16"``, ``"int8"`` (half the bytes) or ``"compact"`` (a quarter).
        pairs: how the encoder reads two texts, ``"joint"``, ``"separate"``, or ``"auto"``, which tries both.
        long_text: ``"truncate"`` or ``"window"``; see `load_encoder`.
        layers: hidden states to read, as numbers; ``None``: those of the preset; ``"auto"`` chooses on a sample.
        label_texts: what the labels mean, a mapping from label to its text or texts; ``"names"``: the labels in words;
            ``"none"``. Default: names for ``"few-shot"`` (unless they are numbers), else none.
        seed: seed of the validation split, the head's weights and the order of rows.
        refit: whether to go on for some steps on all rows once the held-out ones have chosen a head.
        cache: folder of the feature store; default as for the command line.
        keep_features: whether predictions read features from the store and add theirs to it, too, as a search over few
            texts wants. By default only ``fit`` uses the store, and predictions compute features in memory.
        verbose: whether to show progress on stderr.

    Attributes:
        classes_: (C,) the labels, sorted, in the type they were given in; of a multi-label task 0 to C - 1.
        task_: the trained `task.Task`, which names labels by their text.
        validation_metrics_: metrics of the held-out rows.
        truncated_: rows whose text was cut at the encoder's maximum length; a warning tells, too.
    """

    def __init__(  # noqa: PLR0913  # scikit-learn reads the parameters from here
        self,
        encoder: str = DEFAULT_ENCODER,
        *,
        preset: str = "default",
        class_weight: str | Mapping[Any, float] | None = None,
        store: str = "int8",
        seed: int = 0,
        refit: bool = True,
        cache: str | Path | None = None,
        verbose: bool = False,
        precision: Precision = "auto",
        pairs: PairChoice = "auto",
        long_text: LongText = "truncate",
        layers: str | Sequence[int] | None = None,
        keep_features: bool = False,
        label_texts: str | Mapping[Any, str | Sequence[str]] | None = None,
    ) -> None:
        self.encoder, self.preset, self.class_weight = encoder, preset, class_weight
        self.store, self.seed, self.refit, self.cache, self.verbose = store, seed, refit, cache, verbose
        self.precision, self.pairs, self.long_text = precision, pairs, long_text
        self.layers, self.keep_features, self.label_texts = layers, keep_features, label_texts

    def fit(self, X: Any, y: Any, groups: Any = None) -> YTuningClassifier:  # noqa: N803  # scikit-learn's names
        """Train on texts (rows,) and labels (rows,), or 0 and 1 (rows, C).

        Rows with the same value of ``groups`` (rows,) stay together when validation rows are held out; a row whose
        value is None, NaN or an empty text is a group of its own.

        Raises:
            InputError: a parameter is not allowed.
            DataError: a row is not text, there are fewer or more labels or groups than texts, or there is only one
                label or one group.
            EncoderError: the encoder cannot be used.
        """
        # A wrong name is told before the rows are read.
        preset_recipes(self.preset)
        targets = read_targets(y)
        weights = None if self.class_weight is None else _label_weights(self.class_weight, targets)
        data = from_lists(X, groups=groups)
        check_not_blank(data)
        data = replace(data, labels=targets.labels, kind=targets.kind, notes=targets.notes)
        texts = self.label_texts
        if not isinstance(texts, str | None):
            texts = {label_name(label) or str(label): text for label, text in texts.items()}
        self._fit(data, weights, texts, targets.order)
        self.classes_, self._container = targets.classes, targets.container
        # Columns of the head's logits in the order of classes_: labels are ordered by their text, classes by NumPy. A
        # column of zeros is no label of the task, and has no column.
        known = self.task_.target.names
        self._columns = np.array([known.index(name) if name in known else -1 for name in targets.names])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Calibrated probabilities (rows, C) of texts, columns in the order of ``classes_``.

        Raises:
            NotFittedError: before ``fit``.
            DataError: a row is not text, or is a pair where single texts were fitted, or the other way round.
        """
        logits = self._logits(X)
        return self._in_columns(self.task_.calibration.answers(self.task_.target, logits).probabilities, 0.0)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Labels (rows,) of texts, in the type they were fitted in.

        Of a multi-label task they are what ``fit`` was given: an integer array (rows, C) of 0 and 1, or an object array
        (rows,) of lists, tuples or sets of labels.
        """
        logits = self._logits(X)
        answers = self.task_.calibration.answers(self.task_.target, logits)
        if not self.task_.target.gives_many:
            # (C,): the place in classes_ of each of the task's labels.
            labels: np.ndarray = self.classes_[np.argsort(self._columns)[answers.values]]
            return labels
        flags = self._in_columns(answers.values.astype(int), 0)
        if self._container is None:
            return flags
        sets = np.empty(len(flags), object)
        sets[:] = [self._container(self.classes_[row > 0].tolist()) for row in flags]
        return sets

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Share of the rows whose label, or whose labels, are all right."""
        check_is_fitted(self, "task_")
        if self._container is None:
            several = self.task_.target.gives_many
            return float(super().score(X, label_matrix(y, self.classes_) if several else label_array(y), sample_weight))
        true, given = label_sets(y), self.predict(X)
        if len(true) != len(given):
            raise InputError(f"y must have a row for each of the {len(given)} texts. Got {len(true)} instead.")
        right = [set(labels) == set(answer) for labels, answer in zip(true, given, strict=True)]
        return float(np.average(right, weights=sample_weight))

    def _in_columns(self, values: np.ndarray, missing: float) -> np.ndarray:
        found: np.ndarray = np.where(self._columns >= 0, values[:, self._columns], missing)
        return found.astype(values.dtype)

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that several labels are welcome."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class YTuningMultiOutputClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """Several classifiers of the same texts on a frozen encoder, with scikit-learn's contract for several outputs.

    ``y`` is an array, a frame or a list of rows (rows, outputs), one label in each cell. None and NaN say nothing about
    their output: it is trained on the other rows. Each text is encoded once and all heads are trained together. The
    parameters are those of :class:`YTuningClassifier`, but that ``class_weight`` is None or ``"balanced"``,
    ``label_texts`` is None, ``"names"`` or ``"none"``, and ``layers`` is not ``"auto"``.

    Attributes:
        classes_: for each output its labels, sorted, in the type they were given in.
        outputs_: names of the outputs: columns of a frame, else their places.
        tasks_: the trained `task.Task` of each output, named like it.
        validation_metrics_: metrics of the held-out rows of each output, by its name.
        truncated_: rows whose text was cut at the encoder's maximum length; a warning tells, too.
    """

    def __init__(  # noqa: PLR0913  # scikit-learn reads the parameters from here
        self,
        encoder: str = DEFAULT_ENCODER,
        *,
        preset: str = "default",
        class_weight: str | None = None,
        store: str = "int8",
        seed: int = 0,
        refit: bool = True,
        cache: str | Path | None = None,
        verbose: bool = False,
        precision: Precision = "auto",
        pairs: PairChoice = "auto",
        long_text: LongText = "truncate",
        layers: Sequence[int] | None = None,
        keep_features: bool = False,
        label_texts: str | None = None,
    ) -> None:
        self.encoder, self.preset, self.class_weight = encoder, preset, class_weight
        self.store, self.seed, self.refit, self.cache, self.verbose = store, seed, refit, cache, verbose
        self.precision, self.pairs, self.long_text = precision, pairs, long_text
        self.layers, self.keep_features, self.label_texts = layers, keep_features, label_texts

    def fit(self, X: Any, y: Any, groups: Any = None) -> YTuningMultiOutputClassifier:  # noqa: N803
        """Train on texts (rows,) and labels (rows, outputs); ``groups`` as for :meth:`YTuningClassifier.fit`.

        Raises:
            InputError: a parameter is not allowed, ``y`` has another form, or an output cannot be trained.
            DataError: a row is not text, or there are fewer or more labels or groups than texts.
            EncoderError: the encoder cannot be used.
        """
        preset_recipes(self.preset)
        if self.class_weight not in (None, "balanced"):
            raise InputError(must_be_one_of("class_weight", self.class_weight, (None, "balanced")))
        if self.label_texts not in (None, "names", "none"):
            raise InputError(must_be_one_of("label_texts", self.label_texts, (None, "names", "none")))
        data = from_lists(X, groups=groups)
        check_not_blank(data)
        columns, cells = read_outputs(y), len(as_cells(y, "y"))
        if cells != len(data):
            raise InputError(f"y must have a row for each of the {len(data)} texts. Got {cells} instead.")
        targets = {column.name: read_targets(column.values) for column in columns}
        rows = {
            column.name: replace(data.select(column.rows), labels=one.labels, kind=one.kind)
            for column, one in zip(columns, targets.values(), strict=True)
        }
        for name, one in targets.items():
            for note in one.notes:
                warnings.warn(f"output {name!r}: {note}", UserWarning, stacklevel=2)
        recipes, encoder, options = self._prepare(self.class_weight, self.label_texts)
        orders = {name: one.order for name, one in targets.items() if one.order is not None}
        with self._progress() as progress:
            store = FeatureStore(self.cache)
            trained = train_tasks_cheapest(
                rows, encoder, store, recipes, options=options, label_orders=orders, progress=progress
            )
        if len(trained) < len(rows) or any(one.fit.interrupted for one in trained.values()):
            # An estimator is fitted or it is not. The texts read so far stay stored.
            raise KeyboardInterrupt
        self.tasks_, self._shared = [one.task for one in trained.values()], SharedEncoder(encoder)
        self.outputs_ = list(rows)
        self.classes_ = [one.classes for one in targets.values()]
        # For each output the columns of the head's logits in the order of its classes.
        self._columns = [
            np.array([task.target.names.index(name) for name in one.names])
            for task, one in zip(self.tasks_, targets.values(), strict=True)
        ]
        self.validation_metrics_ = {name: one.reports["validation"].metrics for name, one in trained.items()}
        self.truncated_ = max(one.truncated for one in trained.values())
        _warn_cut(self.truncated_)
        return self

    def predict_proba(self, X: Any) -> list[np.ndarray]:  # noqa: N803
        """For each output calibrated probabilities (rows, C) of texts, columns in the order of its ``classes_``.

        Raises:
            NotFittedError: before ``fit``.
            DataError: a row is not text, or is a pair where single texts were fitted, or the other way round.
        """
        return [
            answers.probabilities[:, columns] for answers, columns in zip(self._answers(X), self._columns, strict=True)
        ]

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Labels (rows, outputs) of texts; where outputs have labels of several types, an object array."""
        answers = self._answers(X)
        # (C,) each: the place in classes_ of each of the task's labels.
        columns = [
            classes[np.argsort(order)[answer.values]]
            for answer, order, classes in zip(answers, self._columns, self.classes_, strict=True)
        ]
        if len({column.dtype.kind for column in columns}) == 1:
            return np.stack(columns, axis=1)
        labels = np.empty((len(columns[0]), len(columns)), object)
        for place, column in enumerate(columns):
            labels[:, place] = column.tolist()
        return labels

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Share of the rows whose labels are all right; cells of ``y`` that are None or NaN are not compared."""
        predicted = self.predict(X)
        columns, cells = read_outputs(y), len(as_cells(y, "y"))
        if len(columns) != len(self.tasks_) or cells != len(predicted):
            shape = f"({len(predicted)}, {len(self.tasks_)})"
            raise InputError(f"y must have the shape {shape}. Got ({cells}, {len(columns)}) instead.")
        right = np.ones(len(predicted), bool)
        for place, column in enumerate(columns):
            right[column.rows] &= predicted[column.rows, place] == label_array(column.values)
        return float(np.average(right, weights=sample_weight))

    def save(self, folder: str | Path) -> None:
        """Write a task folder for each output into a folder; see :meth:`YTuningClassifier.save`.

        Raises:
            NotFittedError: before ``fit``.
            InputError: a folder cannot be written, holds other files, or cannot be named like an output.
            WriteError: the disk is full or broken.
        """
        check_is_fitted(self, "tasks_")
        for task, place in zip(self.tasks_, task_folders(folder, self.outputs_).values(), strict=True):
            save_task(task, place)

    @property
    def _fitted_tasks(self) -> list[Task]:
        return self.tasks_

    def _answers(self, X: Any) -> list[Answers]:  # noqa: N803
        """The answers of each output; each text is encoded once for all that read pairs in one way."""
        check_is_fitted(self, "tasks_")
        data, shared = from_lists(X), self._loaded_encoder()
        if problem := self.tasks_[0].form_problem(pairs=data.has_pairs):
            raise DataError(problem, source=data.source)
        logits: dict[str, np.ndarray] = {}
        truncated = np.zeros(len(data), bool)
        for mode in {task.pair_mode for task in self.tasks_}:
            tasks = [task for task in self.tasks_ if task.pair_mode == mode]
            if self.keep_features:
                # The features of tasks that were trained together are the same.
                features, _ = task_features(tasks[0], data, shared.encoder, FeatureStore(self.cache))
                found, cut = [logits_of(task.head, features) for task in tasks], features.truncated_rows
            else:
                found, cut = live_logits_of_tasks(tasks, data, shared)
            logits |= {task.name: own for task, own in zip(tasks, found, strict=True)}
            truncated |= cut
        _warn_cut(int(truncated.sum()))
        return [task.calibration.answers(task.target, logits[task.name]) for task in self.tasks_]

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that there are several outputs."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output, tags.target_tags.single_output = True, False
        return tags


class YTuningRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A regression on texts with a frozen encoder, with scikit-learn's contract.

    ``y`` holds numbers. If its lowest and its highest number are common, as those of a rating are, predictions stay
    between them. The parameters and attributes are those of :class:`YTuningClassifier`, without its classes.
    """

    def __init__(
        self,
        encoder: str = DEFAULT_ENCODER,
        *,
        preset: str = "default",
        store: str = "int8",
        seed: int = 0,
        refit: bool = True,
        cache: str | Path | None = None,
        verbose: bool = False,
        precision: Precision = "auto",
        pairs: PairChoice = "auto",
        long_text: LongText = "truncate",
        layers: str | Sequence[int] | None = None,
        keep_features: bool = False,
    ) -> None:
        self.encoder, self.preset, self.store = encoder, preset, store
        self.seed, self.refit, self.cache, self.verbose = seed, refit, cache, verbose
        self.precision, self.pairs, self.long_text = precision, pairs, long_text
        self.layers, self.keep_features = layers, keep_features

    def fit(self, X: Any, y: Any, groups: Any = None) -> YTuningRegressor:  # noqa: N803
        """Train on texts (rows,) and numbers (rows,); ``groups`` as for :meth:`YTuningClassifier.fit`.

        Raises:
            InputError: a parameter is not allowed, or the numbers have another shape.
            DataError: a row is not text or has no number, there are fewer or more numbers or groups than texts, or
                there is only one number or one group.
            EncoderError: the encoder cannot be used.
        """
        preset_recipes(self.preset)
        numbers = as_cells(y, "y")
        if wrong := [cell for cell in numbers if isinstance(cell, list | tuple | np.ndarray)]:
            raise InputError(
                f"y must be one number for each row, of shape (rows,). Got the row {quote(wrong[0])} instead."
            )
        self._fit(from_lists(X, numbers, kind="regression", groups=groups))
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Numbers (rows,) of texts.

        Raises:
            NotFittedError: before ``fit``.
            DataError: a row is not text, or is a pair where single texts were fitted, or the other way round.
        """
        logits = self._logits(X)
        return self.task_.calibration.answers(self.task_.target, logits).values


def _label_weights(given: str | Mapping[Any, float], targets: Targets) -> str | tuple[float, ...]:
    """The weights in the order of label ids, which is that of the labels' names."""
    if given == "balanced":
        return "balanced"
    if not isinstance(given, Mapping) or not all(_is_weight(weight) for weight in given.values()):
        choices = (None, "balanced", "a mapping from labels to weights of at least 0")
        raise InputError(must_be_one_of("class_weight", given, choices))
    if targets.kind == "multi":
        raise InputError("class_weight of a multi-label task is None or 'balanced'. Got a mapping instead.")
    by_name = dict.fromkeys(targets.names, 1.0)
    for label, weight in given.items():
        name = label_name(label) or str(label)
        if name not in by_name:
            has = ", ".join(map(repr, targets.classes[:12].tolist()))
            problem = f"class_weight names a label that y does not have: {label!r}.{did_you_mean(name, by_name)}"
            raise InputError(f"{problem} y has: {has}")
        by_name[name] = float(weight)
    return tuple(by_name[name] for name in targets.order or LabelSet.from_labels(targets.names).names)


def _is_weight(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and 0 <= float(value) < math.inf


def _numbers(layers: str | Sequence[int]) -> tuple[int, ...]:
    """Read the numbers of hidden states."""
    if isinstance(layers, str) or not all(isinstance(layer, (int, np.integer)) for layer in layers):
        raise InputError(must_be_one_of("layers", layers, (None, AUTO_LAYERS, "numbers of hidden states")))
    return tuple(int(layer) for layer in layers)


def _warn_cut(rows: int) -> None:
    if rows:
        warnings.warn(f"cut {quantity(rows, 'text')} longer than the encoder reads", UserWarning, stacklevel=3)
