"""Every method on every kind of task, on the tiny encoder: what it answers is what its figures say."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WORDS
from ytuning.compare.fine_tuning import TunedEncoder, full_fine_tuning, lora, setfit_pairs
from ytuning.compare.methods import METHODS, TUNINGS, Run, Work, check_methods, run_method, work_on
from ytuning.data.dataset import Dataset
from ytuning.data.kinds import Answers
from ytuning.data.splits import split_holdout
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.errors import DataError, InputError, MissingExtraError
from ytuning.features.codecs import DEFAULT_CODEC, row_bytes
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig
from ytuning.progress import Progress
from ytuning.training import recipes
from ytuning.training.recipes import Recipe, TrainingConfig

QUICK = TrainingConfig(fewest_steps=60, most_steps=60, label_steps=1)
THEMES = {"card": ["card", "stolen", "lost"], "login": ["login", "password", "email"], "refund": ["refund", "money"]}
Kinds = dict[str, tuple[Dataset, Dataset]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets of few steps, and learning rates that suit a tiny encoder."""
    monkeypatch.setitem(recipes.PRESETS, "default", lambda: Recipe(PooledConfig(width=16), QUICK))
    paper = replace(QUICK, loss="triplet")
    monkeypatch.setitem(recipes.PRESETS, "paper", lambda: Recipe(CrossAttentionConfig(width=16), paper, (-1,)))
    monkeypatch.setitem(TUNINGS, "full", (full_fine_tuning, (2e-3, 1e-6)))
    monkeypatch.setitem(TUNINGS, "lora", (lora, (2e-2, 1e-6)))


@pytest.fixture(scope="module")
def kinds() -> Kinds:
    """Train (110 rows) and test (40 rows) of each kind, and of pairs."""
    chooser = random.Random(0)
    labels = [chooser.choice(sorted(THEMES)) for _ in range(150)]
    texts = [" ".join(chooser.choices(WORDS, k=3) + chooser.choices(THEMES[label], k=3)) for label in labels]
    ranks = [sorted(THEMES).index(label) for label in labels]
    others = [" ".join(chooser.choices(THEMES[chooser.choice(sorted(THEMES))], k=4)) for _ in labels]
    sets = {
        "single": Dataset(texts, labels),
        "ordinal": Dataset(texts, [str(rank + 1) for rank in ranks], kind="ordinal"),
        "multi": Dataset(texts, [("first",) * (rank < 2) + ("last",) * (rank > 0) for rank in ranks], kind="multi"),
        "regression": Dataset(texts, [float(rank) for rank in ranks], kind="regression"),
        "pairs": Dataset(texts, labels, text_pairs=others),
    }
    return {name: (each.select(range(110)), each.select(range(110, 150))) for name, each in sets.items()}


@pytest.fixture
def run(tiny_encoder: Path, tmp_path: Path) -> Callable[..., tuple[Run, Work]]:
    """One method on train and test rows."""
    numbers: Iterator[int] = iter(range(1000))

    def run(name: str, train: Dataset, test: Dataset | None = None, **options: Any) -> tuple[Run, Work]:
        seed = options.pop("seed", 0)
        work = work_on(train, str(tiny_encoder), test=test, **{"epochs": 40, **options})
        return run_method(name, work, seed, tmp_path / str(next(numbers)), Progress()), work

    return run


@pytest.mark.parametrize("kind", ["single", "ordinal", "multi", "regression", "pairs"])
@pytest.mark.parametrize("method", ["ytuning", "logistic", "full", "lora"])
def test_every_method_learns_every_kind(method: str, kind: str, kinds: Kinds, run: Any) -> None:
    found, work = run(method, *kinds[kind])
    metric = work.target.headlines[0]
    assert found.metrics[metric] > (0.3 if kind == "regression" else 0.45)  # of chance level 0, and about a third
    assert found.rows["judged"] == len(found.predicted) == 40
    assert found.rows["train"] + found.rows["validation"] == 110
    assert found.parameters > 0 and found.seconds > 0
    assert found.peak_bytes is not None and found.peak_bytes > 50e6
    stored = found.seconds_with_stored_features
    assert stored is None if method in ("full", "lora") else stored > 0
    truth = work.judged(0)
    if kind == "multi":
        predicted = np.zeros((40, 2), bool)
        for row, ids in enumerate(found.predicted):
            predicted[row, ids] = True
        expected = work.target.metrics(truth > 0, Answers(predicted, predicted.astype(float)))[metric]
    elif kind == "regression":
        expected = np.corrcoef(work.target.decode(truth), found.predicted)[0, 1]
    else:
        expected = np.mean(np.array(found.predicted) == truth)
    assert found.metrics[metric] == pytest.approx(expected)


def test_the_papers_head_is_one_of_them(kinds: Kinds, run: Any) -> None:
    found, _ = run("paper", *kinds["single"])
    assert found.metrics["accuracy"] > 0.45
    numbers, _ = run("paper", *kinds["regression"])  # which have a loss of their own
    assert numbers.metrics["pearson"] > 0.3


@pytest.mark.parametrize("method", ["ytuning", "logistic", "full", "lora"])
def test_without_test_rows_those_that_chose_judge(method: str, kinds: Kinds, run: Any) -> None:
    train = kinds["single"][0]
    found, work = run(method, train, seed=3)
    held = split_holdout(train, 3)[1]
    truth = work.target.encode([train.names[row] for row in held])
    np.testing.assert_array_equal(work.judged(3), truth)
    assert found.rows == {"train": 110 - len(held), "validation": len(held), "judged": len(held)}
    assert found.metrics["accuracy"] == pytest.approx(np.mean(np.array(found.predicted) == truth))


@pytest.mark.parametrize("method", ["ytuning", "logistic", "lora"])
def test_validation_rows_can_be_given(method: str, kinds: Kinds, run: Any) -> None:
    train, test = kinds["single"]
    found, work = run(method, train, validation=test)
    assert found.rows == {"train": 110, "validation": 40, "judged": 40}
    np.testing.assert_array_equal(work.judged(0), work.judged(1))


@pytest.mark.parametrize("method", ["ytuning", "logistic"])
def test_with_stored_features_there_is_no_encoder_pass(
    method: str, kinds: Kinds, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Encoder.encode

    def slow(self: Encoder, *arguments: Any) -> Any:
        time.sleep(3)
        yield from encode(self, *arguments)

    monkeypatch.setattr(Encoder, "encode", slow)
    for kind, passes in (("single", 1), ("pairs", 2)):
        found, _ = run(method, kinds[kind][0])
        assert found.seconds - found.seconds_with_stored_features > passes - 0.5


@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_what_is_stored_and_how_fast_a_task_answers(
    kind: str, kinds: Kinds, run: Any, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = kinds[kind]
    inputs = [*train.inputs, *test.inputs]
    # Pairs are read in both ways: each text by itself, and both together.
    texts: set[tuple[str, str | None]] = {(text, None) for pair in inputs for text in pair if text is not None}
    texts |= set(inputs) if kind == "pairs" else set()
    encoder = load_encoder(tiny_encoder)
    tokens = int(encoder.tokenize(sorted(texts, key=str)).lengths.sum())
    encode, passes = Encoder.encode, []

    def slow(self: Encoder, tokens: Any, *arguments: Any) -> Any:
        passes.append(len(tokens.lengths))
        time.sleep(0.5)
        yield from encode(self, tokens, *arguments)

    monkeypatch.setattr(Encoder, "encode", slow)
    found, _ = run("ytuning", train, test)
    width = row_bytes(DEFAULT_CODEC, 2, 32)
    if kind == "single":
        assert (found.stored_texts, found.stored_bytes) == (len(texts), tokens * width)
    else:
        # The test rows are read only in the way that was chosen.
        assert 0 < found.stored_texts < len(texts) and 0 < found.stored_bytes < tokens * width
    # One round to warm up and three that count, in which the encoder reads the texts anew.
    distinct = (
        set(test.inputs) if found.details["pairs"] != "separate" else {text for pair in test.inputs for text in pair}
    )
    assert passes[-4:] == [len(distinct)] * 4
    assert 0 < found.texts_per_second < len(set(test.inputs)) / 0.5
    probe, _ = run("logistic", train, test)
    assert probe.texts_per_second is None and probe.stored_bytes > 0
    assert found.encoder == {
        "name": str(tiny_encoder),
        "fingerprint": encoder.identity.fingerprint,
        "parameters": encoder.identity.parameters,
        "precision": encoder.identity.precision,
        "width": 32,
        "max_length": 32,
    }


def test_what_trains_the_encoder_stores_and_serves_nothing(kinds: Kinds, run: Any) -> None:
    found, _ = run("full", *kinds["single"], epochs=1)
    assert (found.stored_bytes, found.stored_texts, found.texts_per_second) == (None, None, None)


def test_learning_rates_are_searched_when_asked(kinds: Kinds, run: Any) -> None:
    found, _ = run("full", *kinds["single"], search_rates=True, epochs=3)
    assert set(found.details["rates"]) == {"0.002", "1e-06"}
    assert set(run("full", *kinds["single"], epochs=1)[0].details["rates"]) == {"0.002"}


def test_few_rows_are_passed_over_more_often(kinds: Kinds, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[tuple[int, int]] = []

    def seen(*arguments: Any, **options: Any) -> TunedEncoder:
        configs.append((options["config"].epochs, options["config"].patience))
        return full_fine_tuning(*arguments, **{**options, "config": replace(options["config"], most_steps=1)})

    monkeypatch.setitem(TUNINGS, "full", (seen, (2e-3,)))
    train, test = kinds["single"]
    run("full", train, test, epochs=None)  # 99 rows in 4 batches
    run("full", train, test, epochs=7)
    many = train.select(np.tile(np.arange(110), 20))  # of which five passes are more than 300 steps
    run("full", many, test, epochs=None)
    assert configs == [(75, 30), (7, 3), (5, 2)]


def test_a_training_that_diverged_has_no_figures(kinds: Kinds, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TUNINGS, "full", (full_fine_tuning, (1e30,)))
    with pytest.raises(InputError, match=r"^the training diverged with a learning rate of 1e\+30\. Try several with"):
        run("full", *kinds["single"], epochs=1)


def test_setfit_takes_single_texts_with_a_label_each(kinds: Kinds, run: Any) -> None:
    for kind, named in (("multi", "kind 'multi'"), ("pairs", "pairs")):
        with pytest.raises(InputError, match=rf"these rows are of {named}\. Leave it out$"):
            run("setfit", *kinds[kind])


@pytest.mark.filterwarnings("default")  # of the opponent's packages
def test_setfit(kinds: Kinds, run: Any) -> None:
    pytest.importorskip("setfit")
    train, test = kinds["single"]
    found, work = run("setfit", train.select(range(40)), test)
    assert found.metrics["accuracy"] == pytest.approx(np.mean(np.array(found.predicted) == work.judged(0)))
    assert found.metrics["accuracy"] > 0.45
    assert found.parameters == found.encoder["parameters"] + 3 * (32 + 1)
    assert found.details == {"pairs_of_each_kind_for_a_row": 20}
    assert [setfit_pairs(rows) for rows in (1000, 1001, 20_000, 10**6)] == [20, 19, 1, 1]


@pytest.mark.parametrize(("method", "package", "extra"), [("lora", "peft", "peft"), ("setfit", "setfit", "benchmark")])
def test_a_missing_extra_is_named(
    method: str, package: str, extra: str, kinds: Kinds, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"^the package '{package}' is not installed.*ytuning\[{extra}\]' "):
        run(method, *kinds["single"])


def test_methods_are_checked() -> None:
    check_methods(list(METHODS))
    with pytest.raises(
        InputError,
        match=r"^methods must be one of 'ytuning', 'paper', 'few-shot', 'logistic', 'full', 'lora', 'setfit'. Got 'be",
    ):
        check_methods(["ytuning", "bert"])
    for names, shown in (([], "''"), (["lora", "lora"], "'lora,lora'")):
        with pytest.raises(InputError, match=rf"name each method once, and at least one\. Got {shown} instead\.$"):
            check_methods(names)


def test_rows_are_checked_as_for_training(kinds: Kinds) -> None:
    train, test = kinds["single"]
    with pytest.raises(DataError, match="does not occur in the training set"):
        work_on(train, "x", test=replace(test, labels=["new", *test.names[1:]]))
    with pytest.raises(DataError, match="are pairs"):
        work_on(train, "x", test=kinds["pairs"][1])
