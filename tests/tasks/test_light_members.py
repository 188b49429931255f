"""Tasks whose default head has a light member: saved, asked alone and in company, grown, shrunk, and as ensembles."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SERVED_TEXTS
from ytuning.data.dataset import Dataset, from_lists
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.tokens import LongText
from ytuning.estimator import YTuningClassifier
from ytuning.evaluation.attribution import explain_one
from ytuning.features.store import FeatureStore
from ytuning.heads.pooled import PooledConfig, PooledHead
from ytuning.tasks.add_label import grow_task
from ytuning.tasks.evaluate import evaluate_task
from ytuning.tasks.predictor import Predictor
from ytuning.tasks.remove_label import shrink_task
from ytuning.tasks.shared_encoder import share_encoders
from ytuning.tasks.task import Task, load_task, save_task
from ytuning.tasks.train import TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig

Toy = tuple[list[str], list[str]]
RECIPE = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=20, most_steps=20, label_steps=0))
TEXTS = list(dict.fromkeys(SERVED_TEXTS))


def halves(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Training rows, and so many validation rows that a light member can be weighed."""
    return rows.select(range(0, len(rows), 2)), rows.select(range(1, len(rows), 2))


def trained(rows: Dataset, encoder: Encoder, options: TrainOptions) -> Task:
    train, held = halves(rows)
    task = train_task(train, encoder, FeatureStore(), RECIPE, validation=held, options=options).task
    assert isinstance(task.head, PooledHead) and task.head.light is not None
    assert task.head.config == task.config and task.config.light_width > 0
    return task


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture(scope="module")
def task(toy_rows: Toy, encoder: Encoder) -> Task:
    return trained(from_lists(*toy_rows), encoder, TrainOptions(name="one"))


def test_a_saved_task_says_the_same_alone_in_company_and_one_by_one(
    task: Task, toy_rows: Toy, encoder: Encoder, tmp_path: Path
) -> None:
    save_task(task, tmp_path / "one")
    again = load_task(tmp_path / "one")
    other = trained(
        from_lists(toy_rows[0], [str("my" in text) for text in toy_rows[0]]), encoder, TrainOptions(name="two")
    )
    alone = Predictor(again).scores(TEXTS)["one"]
    together = Predictor([other, again])
    np.testing.assert_allclose(together.scores(TEXTS)["one"], alone, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([together.scores([text])["one"] for text in TEXTS]), alone, atol=1e-5)
    # Stored features say what live ones say.
    rows = from_lists(TEXTS, [toy_rows[1][0]] * len(TEXTS))
    evaluated = evaluate_task(again, rows, encoder, FeatureStore()).judged
    np.testing.assert_allclose(
        task.target.answers(task.calibration.scale(evaluated.logits), None, None).probabilities, alone, atol=1e-3
    )


def test_an_ensemble_has_one(toy_rows: Toy, encoder: Encoder) -> None:
    both = trained(from_lists(*toy_rows), encoder, TrainOptions(seeds=2, ensemble=True))
    assert isinstance(both.head, PooledHead) and both.head.members == 2 * 6 + 1
    assert both.head.member_weights.mean().item() == pytest.approx(1)


def test_labels_come_and_go(task: Task, encoder: Encoder) -> None:
    examples = from_lists(["stolen phone", "my phone", "a phone", "no phone"], ["phone"] * 4)
    grown = grow_task(task, "phone", examples, encoder, FeatureStore()).task
    assert isinstance(grown.head, PooledHead) and grown.head.light is not None
    first, second = (Predictor(one).scores(TEXTS)[one.name] for one in (task, grown))
    assert second.shape[1] == first.shape[1] + 1 and np.isfinite(second).all()
    shrunk = shrink_task(grown, "phone", encoder, FeatureStore()).task
    np.testing.assert_allclose(Predictor(shrunk).scores(TEXTS)[task.name], first, atol=1e-5)


def test_what_a_token_adds_is_explained(task: Task, encoder: Encoder) -> None:
    (shared,) = share_encoders([task])
    content = (TEXTS[0], None)
    live = shared.read([content], [task], pair_mode=None)
    effects = explain_one(task.head, content, encoder, live.seen_by(task), pair_mode=None)
    assert np.isfinite(effects.values).all() and np.abs(effects.values).max() > 0


@pytest.mark.parametrize("long_text", ["truncate", "window"])
def test_texts_longer_than_the_encoder_reads(long_text: LongText, toy_rows: Toy, tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32", long_text=long_text, max_length=8)
    rows = from_lists([text * 3 for text in toy_rows[0]], toy_rows[1])
    task = trained(rows, encoder, TrainOptions())
    scores = Predictor(task).scores([text * 3 for text in TEXTS])[task.name]
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_pairs(mode: str, toy_rows: Toy, encoder: Encoder) -> None:
    texts, labels = toy_rows
    task = trained(from_lists(texts, labels, texts[::-1]), encoder, TrainOptions(pairs=mode))  # type: ignore[arg-type]
    pairs = [(text, "my money") for text in TEXTS]
    whole = Predictor(task).scores(pairs)[task.name]
    one_by_one = np.concatenate([Predictor(task).scores([pair])[task.name] for pair in pairs])
    np.testing.assert_allclose(one_by_one, whole, atol=1e-5)


def test_a_fitted_estimator_is_copied_with_it(toy_rows: Toy, tiny_encoder: Path) -> None:
    texts, labels = toy_rows
    # Twice as many rows, of which more than 20 are validation rows.
    model = YTuningClassifier(encoder=str(tiny_encoder), precision="fp32")
    model.fit([*texts, *(" ".join(reversed(text.split())) for text in texts)], [*labels, *labels])
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(copy.predict_proba(texts[:9]), model.predict_proba(texts[:9]), atol=1e-6)
    assert isinstance(model.task_.head, PooledHead) and model.task_.head.light is not None
