"""Train, compare and serve text classifiers on a frozen encoder.

Names are loaded on first use, so that ``import ytuning`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ytuning.artifact import Task as Task
    from ytuning.artifact import load_task as load_task
    from ytuning.artifact import save_task as save_task
    from ytuning.data import Dataset as Dataset
    from ytuning.data import from_lists as from_lists
    from ytuning.data import read_dataset as read_dataset
    from ytuning.encoder import Encoder as Encoder
    from ytuning.encoder import load_encoder as load_encoder
    from ytuning.errors import YTuningError as YTuningError
    from ytuning.estimator import YTuningClassifier as YTuningClassifier
    from ytuning.estimator import YTuningRegressor as YTuningRegressor
    from ytuning.html_report import render_report as render_report
    from ytuning.pipeline import train_task as train_task
    from ytuning.predictor import Prediction as Prediction
    from ytuning.predictor import Predictor as Predictor
    from ytuning.recipes import Recipe as Recipe
    from ytuning.recipes import preset as preset
    from ytuning.store import FeatureStore as FeatureStore
    from ytuning.task_use import evaluate_task as evaluate_task

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "data",
    "Encoder": "encoder",
    "FeatureStore": "store",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "Recipe": "recipes",
    "Task": "artifact",
    "YTuningClassifier": "estimator",
    "YTuningError": "errors",
    "YTuningRegressor": "estimator",
    "evaluate_task": "task_use",
    "from_lists": "data",
    "load_encoder": "encoder",
    "load_task": "artifact",
    "preset": "recipes",
    "read_dataset": "data",
    "render_report": "html_report",
    "save_task": "artifact",
    "train_task": "pipeline",
}

__all__ = [
    "Dataset",
    "Encoder",
    "FeatureStore",
    "Prediction",
    "Predictor",
    "Recipe",
    "Task",
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
