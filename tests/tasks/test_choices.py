"""``--layers auto``: which sets are compared, that this finds where labels lie, and what is stored after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ytuning.data.dataset import Dataset, TextInput, from_lists, labels_of
from ytuning.data.kinds import TaskKind, fit_kind
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import default_states
from ytuning.errors import InputError
from ytuning.estimator import YTuningClassifier
from ytuning.features.codecs import Float16Codec
from ytuning.features.features import TextFeatures
from ytuning.features.store import FeatureStore, StoredRows
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig
from ytuning.progress import Progress
from ytuning.tasks import choices
from ytuning.tasks.choices import (
    LayerRanking,
    RankedStates,
    affordable_rows,
    layer_sets,
    rank_layers,
    sample_rows,
)
from ytuning.tasks.train import Trained, TrainOptions, train_task
from ytuning.training.recipes import Recipe, TrainingConfig, recipe_from_json

pytestmark = pytest.mark.usefixtures("short_choice")

RECIPE = Recipe(PooledConfig(width=16, token_width=16), TrainingConfig(fewest_steps=30, most_steps=30))


class Recorder(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder, precision="fp32")


@pytest.fixture
def toy(toy_rows: tuple[list[str], list[str]]) -> Dataset:
    return from_lists(*toy_rows)


def target_of(data: Dataset) -> TaskKind:
    return fit_kind(data.kind, labels_of(data))


def rank(
    data: Dataset, encoder: Encoder, recipe: Recipe = RECIPE, modes: Sequence[PairMode | None] = (None,)
) -> LayerRanking:
    return rank_layers(data, encoder, recipe, modes=modes, seed=0, progress=Progress(), target=target_of(data))


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12, 24, 48])
def test_sets_of_layers_are_few_different_and_there(depth: int) -> None:
    default = default_states(depth)
    sets = layer_sets(depth, default)
    assert sets[0] == default and len(set(sets)) == len(sets) <= 13
    assert all(list(layers) == sorted(set(layers)) and 0 < layers[0] <= layers[-1] <= depth for layers in sets)
    assert len({layer for layers in sets for layer in layers} - set(default)) <= 5
    assert all(1 <= len(layers) <= 3 for layers in sets[1:])
    single = layer_sets(depth, (depth,), single=True)
    assert single[0] == (depth,) and all(len(layers) == 1 for layers in single)


def test_sets_of_an_encoder_of_six_layers() -> None:
    assert set(layer_sets(6, (1, 5))) == {
        (1, 5), (6,), (2, 3), (3, 4), (3, 5), (3, 6), (4, 6), (5, 6), (2, 3, 4), (2, 4, 6), (3, 5, 6), (4, 5, 6),
    }  # fmt: skip
    assert set(layer_sets(6, (6,), single=True)) == {(2,), (3,), (4,), (5,), (6,)}


def ranking(*rows: tuple[tuple[int, ...], float, float]) -> LayerRanking:
    ranked = tuple(RankedStates(layers, 0.5 + behind, behind, error) for layers, behind, error in rows)
    return LayerRanking((4, 5), ranked, from_lists(["a"] * 80), (4, 5, 6), {})


@pytest.mark.parametrize(
    ("rows", "choice"),
    [
        ([((4, 6), 0.0, 0.0), ((4, 5), 0.04, 0.01), ((3,), 0.02, 0.01)], (4, 6)),
        ([((4, 6), 0.0, 0.0), ((4, 5), 0.04, 0.01), ((3,), 0.02, 0.05)], (3,)),
        ([((4, 6), 0.0, 0.0), ((4, 5), 0.04, 0.02), ((3,), 0.02, 0.05)], (4, 5)),
        ([((3, 4), 0.0, 0.0), ((4,), 0.01, 0.02), ((4, 5), 0.04, 0.01)], (4,)),
        ([((4, 5), 0.0, 0.0), ((3,), 0.01, 0.05)], (4, 5)),
        ([], (4, 5)),
    ],
)
def test_the_default_unless_it_is_clearly_behind_then_the_cheapest_of_those_hardly_behind(
    rows: list[tuple[tuple[int, ...], float, float]], choice: tuple[int, ...]
) -> None:
    assert ranking(*rows).choice == choice


def test_what_is_said() -> None:
    assert ranking(((4, 6), 0.0, 0.0), ((4, 5), 0.04, 0.01)).message() == (
        "layers: 4, 6; the squared error of linear probes on a sample of 80 rows is 0.5000, of the default (4, 5) "
        "0.5400, of the best of 2 sets (4, 6) 0.5000"
    )
    assert ranking().message() == (
        "layers: 4, 5 (the default), as there are too few rows to choose: a sample that takes a tenth of the encoder's "
        "time has 80, and at least 30 are needed"
    )


def test_the_same_ranking_again(toy: Dataset, tiny_encoder: Path) -> None:
    first, again = (rank(toy, load_encoder(tiny_encoder)) for _ in range(2))
    assert (first.ranked, first.choice) == (again.ranked, again.choice)
    assert first.ranked[0].behind == first.ranked[0].error == 0
    assert all(each.behind == pytest.approx(each.loss - first.ranked[0].loss) for each in first.ranked)
    assert len(first.sample) == 60 and first.default == default_states(3) and first.states == (1, 2, 3)


def test_the_form_of_the_paper_reads_one_state(toy: Dataset, encoder: Encoder) -> None:
    found = rank(toy, encoder, Recipe(CrossAttentionConfig(width=16), RECIPE.training, layers=(-1,)))
    assert found.default == (3,) and {each.states for each in found.ranked} == {(1,), (2,), (3,)}


@pytest.mark.parametrize("kind", ["ordinal", "multi", "regression"])
def test_every_kind_of_task(toy: Dataset, encoder: Encoder, kind: str) -> None:
    ids = [sorted(set(toy.names)).index(name) for name in toy.names]
    labels: list[object] = {
        "ordinal": [str(number) for number in ids],
        "regression": [number / 2 for number in ids],
    }.get(kind, [(name,) for name in toy.names])  # type: ignore[assignment]
    ranked = rank(from_lists(toy.texts, labels, kind=kind), encoder).ranked  # type: ignore[arg-type]
    assert {(1, 2), (2, 3), (3,)} <= {each.states for each in ranked}


def test_on_too_small_a_sample_the_default_is_taken_and_nothing_is_encoded(
    toy: Dataset, encoder: Encoder, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "FEWEST_ROWS", 61)
    found = rank(toy, encoder)
    assert (found.ranked, found.choice, encoded) == ((), default_states(3), [])
    assert found.keep(found.choice, encoder, FeatureStore(), Progress(), "int8") == 0


def test_the_states_in_which_the_label_lies_are_chosen(
    toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    tell = {name: generator.normal(size=32) for name in set(toy.names)}

    def live(inputs: Sequence[TextInput], encoder: Encoder, *, states: Sequence[int], pair_mode: object) -> object:
        sample = [toy.names[toy.texts.index(text)] for text, _ in inputs]
        values = generator.normal(size=(len(sample), len(states), 32))
        values[:, states.index(1)] += [tell[name] for name in sample]
        codec = Float16Codec(len(states), 32)
        array = codec.encode(torch.from_numpy(values.astype(np.float16))).numpy()
        count = len(sample)
        rows = StoredRows(
            [array], np.zeros(count, int), np.arange(count), np.ones(count, int), np.zeros(count, bool), codec
        )
        return TextFeatures(rows, torch.float32)

    monkeypatch.setattr(choices, "live_inputs", live)
    head = Recipe(CrossAttentionConfig(width=16), RECIPE.training, layers=(-1,))
    assert rank(toy, encoder, head).choice == (1,)
    found = rank(toy, encoder, replace(RECIPE, layers=(2, 3)))
    assert 1 in found.choice and 1 in found.ranked[0].states


@pytest.mark.parametrize("rows", [1_000, 3_000, 30_000])
def test_the_sample_grows_with_the_rows_and_with_what_the_pass_costs(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "SHARE", 0.1)
    monkeypatch.setattr(choices, "SAMPLE_TEXTS", 10**6)

    def size(rows: int = rows, tokens: float = 20.0, *, width: int = 384, **options: Any) -> int:
        options = {"default": (3, 6), "sets": [(3, 6), (4, 6)], "pools": 1, **options}
        return affordable_rows(rows, tokens, width, **options)

    assert 0 < size() < rows
    assert size() < min(size(2 * rows), size(tokens=40.0), size(width=768))
    # Layers above the default's deepest state, further sets and wider probes cost more.
    assert size(default=(3, 5)) < size()
    assert size(sets=[(3, 6), *((2, state) for state in (3, 4, 5, 6))]) < size()
    assert size(pools=4) < size()
    # A sample of a tenth of the rows costs a tenth of the pass where its states are twice as deep.
    assert size(default=(1,), sets=[(1,), (2,)]) <= rows / 10


def train(data: Dataset, encoder: Encoder, progress: Progress | None = None) -> Trained:
    return train_task(data, encoder, FeatureStore(), RECIPE, options=TrainOptions(layers="auto"), progress=progress)


def test_only_the_chosen_states_are_stored_and_no_text_is_read_twice(
    toy: Dataset, encoder: Encoder, encoded: list[int]
) -> None:
    progress = Recorder()
    trained = train(toy, encoder, progress)
    assert encoded == [60, 60]  # the sample, then the rest
    assert (trained.cache.hits, trained.cache.misses) == (0, 120)
    (space,) = FeatureStore().spaces()
    layers = trained.task.states
    assert space.states == layers
    (said,) = [line for line in progress.said if line.startswith("layers: ")]
    measured = "the squared error of linear probes on a sample of 60 rows is "
    assert said.startswith(f"layers: {', '.join(map(str, layers))}; {measured}")
    recipe = recipe_from_json(trained.task.training["recipe"])
    assert recipe == Recipe(RECIPE.head, RECIPE.training, layers)
    # What was stored is what the encoder gives for these states: training on it afresh gives the same head.
    FeatureStore().remove()
    again = train_task(toy, encoder, FeatureStore(), recipe)
    for name, value in trained.task.head.state_dict().items():
        assert torch.equal(value, again.task.head.state_dict()[name])


def test_the_sample_has_the_shares_of_the_labels_and_fits_in_memory(
    toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(data: Dataset, seed: int = 0) -> Dataset:
        return sample_rows(data, seed, encoder, (2, 3), [(2, 3)])

    labels = toy.names
    sample = some(toy)
    for label in set(labels):
        assert abs(sample.names.count(label) - labels.count(label) / 2) <= 1
    tokens = float(encoder.tokenize(toy.inputs).lengths.mean())
    monkeypatch.setattr(choices, "SAMPLE_BYTES", int(30 * tokens * 2 * 2 * 32) + 1)
    assert len(some(toy)) == 30
    assert some(toy).texts == some(toy).texts
    assert some(toy, 1).texts != some(toy).texts


def test_pairs_are_measured_as_they_will_be_read(toy_rows: tuple[list[str], list[str]], encoder: Encoder) -> None:
    data = from_lists(*toy_rows, toy_rows[0][::-1])
    found = rank(data, encoder, modes=("joint", "separate"))
    assert set(found.features) == {"joint", "separate"} and found.ranked
    trained = train(data, encoder)
    assert trained.task.pair_mode in ("joint", "separate") and trained.cache.hits == 0


def test_layers_of_the_estimator(toy_rows: tuple[list[str], list[str]], tiny_encoder: Path) -> None:
    def fitted(layers: str | list[int] | None) -> YTuningClassifier:
        model = YTuningClassifier(str(tiny_encoder), layers=layers, precision="fp32")
        return model.fit(*toy_rows)

    assert fitted([1, 3]).task_.states == (1, 3)
    chosen = fitted("auto")
    assert chosen.predict(toy_rows[0][:3]).shape == (3,)
    with pytest.raises(
        InputError, match=r"^layers must be one of None, 'auto', 'numbers of hidden states'\. Got 'all' "
    ):
        fitted("all")


def test_an_unknown_choice_of_layers_is_refused_before_encoding(toy: Dataset, encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"^layers must be one of None, 'auto'\. Got 'last' instead\.$"):
        options = TrainOptions(layers="last")  # type: ignore[arg-type]
        train_task(toy, encoder, FeatureStore(), RECIPE, options=options)
    assert FeatureStore().spaces() == []


@pytest.mark.parametrize(("lead", "ranks"), [(0.25, "joint"), (0.15, "separate"), (-0.25, "separate")])
def test_joint_reading_ranks_only_where_it_is_clearly_better(
    lead: float, ranks: str, toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.tensor([1.0, -1.0] * 30, dtype=torch.float64)  # of the difference: a standard error of 0.13
    separate = torch.full((60,), 2.0, dtype=torch.float64)
    kernels: list[torch.Tensor] = []

    def computed(pooled: torch.Tensor) -> torch.Tensor:
        # Pairs that are encoded separately have four pools of each state.
        kernels.append(torch.full((3, 60, 60), float(pooled.shape[1])))
        return kernels[-1]

    def errors(kernel: torch.Tensor, *_: object) -> torch.Tensor:
        return separate if kernel[0, 0] == 4 else separate + noise - lead * 4 / 3

    monkeypatch.setattr(choices, "state_kernels", computed)
    monkeypatch.setattr(choices, "left_out_errors", errors)
    data = replace(toy, text_pairs=toy.texts[::-1])
    found = rank(data, encoder, modes=("joint", "separate"))
    assert len(kernels) == 2
    assert found.ranked[0].loss == pytest.approx(2 - lead * 4 / 3 if ranks == "joint" else 2)
