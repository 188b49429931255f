"""Train, compare and serve text classifiers on a frozen encoder.

Names are loaded on first use, so that ``import ytuning`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ytuning.batch.batch_predictor import BatchPredictor
    from ytuning.batch.encode_folder import encode_folder
    from ytuning.batch.predict_folder import predict_folder
    from ytuning.batch.train_tasks import train_tasks
    from ytuning.data.dataset import Dataset, from_lists, read_dataset
    from ytuning.data.task_columns import read_tasks
    from ytuning.encoder.encoder import Encoder, load_encoder
    from ytuning.engines.engine import Engine
    from ytuning.errors import YTuningError
    from ytuning.estimator import YTuningClassifier, YTuningMultiOutputClassifier, YTuningRegressor
    from ytuning.features.store import FeatureStore
    from ytuning.reports.html import render_report
    from ytuning.tasks.evaluate import evaluate_task
    from ytuning.tasks.predictor import Prediction, Predictor
    from ytuning.tasks.task import Task, load_task, save_task
    from ytuning.tasks.train import TrainOptions, train_task
    from ytuning.training.recipes import Recipe, preset

__version__ = "0.1.0"

__all__ = [
    "BatchPredictor", "Dataset", "Encoder", "Engine", "FeatureStore", "Prediction", "Predictor", "Recipe", "Task",
    "TrainOptions", "YTuningClassifier", "YTuningError", "YTuningMultiOutputClassifier", "YTuningRegressor",
    "__version__", "encode_folder", "evaluate_task", "from_lists", "load_encoder", "load_task", "predict_folder",
    "preset", "read_dataset", "read_tasks", "render_report", "save_task", "train_task", "train_tasks",
]  # fmt: skip

_HOMES = {
    "batch.batch_predictor": ("BatchPredictor",),
    "batch.encode_folder": ("encode_folder",),
    "engines.engine": ("Engine",),
    "batch.predict_folder": ("predict_folder",),
    "batch.train_tasks": ("train_tasks",),
    "data.dataset": ("Dataset", "from_lists", "read_dataset"),
    "data.task_columns": ("read_tasks",),
    "encoder.encoder": ("Encoder", "load_encoder"),
    "errors": ("YTuningError",),
    "estimator": ("YTuningClassifier", "YTuningMultiOutputClassifier", "YTuningRegressor"),
    "features.store": ("FeatureStore",),
    "reports.html": ("render_report",),
    "tasks.evaluate": ("evaluate_task",),
    "tasks.predictor": ("Prediction", "Predictor"),
    "tasks.task": ("Task", "load_task", "save_task"),
    "tasks.train": ("TrainOptions", "train_task"),
    "training.recipes": ("Recipe", "preset"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"ytuning.{home}"), name)
    raise AttributeError(f"module 'ytuning' has no attribute {name!r}")
