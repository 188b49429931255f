"""Train, compare and serve text classifiers on a frozen encoder.

Names are loaded on first use, so that ``import ytuning`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ytuning.data.dataset import Dataset as Dataset
    from ytuning.data.dataset import from_lists as from_lists
    from ytuning.data.dataset import read_dataset as read_dataset
    from ytuning.encoder.encoder import Encoder as Encoder
    from ytuning.encoder.encoder import load_encoder as load_encoder
    from ytuning.errors import YTuningError as YTuningError
    from ytuning.estimator import YTuningClassifier as YTuningClassifier
    from ytuning.estimator import YTuningRegressor as YTuningRegressor
    from ytuning.features.store import FeatureStore as FeatureStore
    from ytuning.reports.html import render_report as render_report
    from ytuning.tasks.evaluate import evaluate_task as evaluate_task
    from ytuning.tasks.predictor import Prediction as Prediction
    from ytuning.tasks.predictor import Predictor as Predictor
    from ytuning.tasks.task import Task as Task
    from ytuning.tasks.task import load_task as load_task
    from ytuning.tasks.task import save_task as save_task
    from ytuning.tasks.train import TrainOptions as TrainOptions
    from ytuning.tasks.train import train_task as train_task
    from ytuning.training.recipes import Recipe as Recipe
    from ytuning.training.recipes import preset as preset

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "data.dataset",
    "Encoder": "encoder.encoder",
    "FeatureStore": "features.store",
    "Prediction": "tasks.predictor",
    "Predictor": "tasks.predictor",
    "Recipe": "training.recipes",
    "Task": "tasks.task",
    "TrainOptions": "tasks.train",
    "YTuningClassifier": "estimator",
    "YTuningError": "errors",
    "YTuningRegressor": "estimator",
    "evaluate_task": "tasks.evaluate",
    "from_lists": "data.dataset",
    "load_encoder": "encoder.encoder",
    "load_task": "tasks.task",
    "preset": "training.recipes",
    "read_dataset": "data.dataset",
    "render_report": "reports.html",
    "save_task": "tasks.task",
    "train_task": "tasks.train",
}

__all__ = [
    "Dataset",
    "Encoder",
    "FeatureStore",
    "Prediction",
    "Predictor",
    "Recipe",
    "Task",
    "TrainOptions",
    "YTuningClassifier",
    "YTuningError",
    "YTuningRegressor",
    "__version__",
    "evaluate_task",
    "from_lists",
    "load_encoder",
    "load_task",
    "preset",
    "read_dataset",
    "render_report",
    "save_task",
    "train_task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ytuning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ytuning.{_HOMES[name]}"), name)
