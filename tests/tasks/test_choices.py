"""``--layers auto``: which sets are compared, that this finds where labels lie, and what is stored after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ytuning.data.dataset import Dataset, from_lists, labels_of
from ytuning.data.kinds import TaskKind, fit_kind
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import default_states
from ytuning.errors import InputError
from ytuning.estimator import YTuningClassifier
from ytuning.features.codecs import Float16Codec
from ytuning.features.features import TextFeatures
from ytuning.features.store import FeatureStore, StoredRows
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import CrossAttentionConfig, PooledConfig, build_head
from ytuning.progress import Progress
from ytuning.tasks import choices
from ytuning.tasks.choices import (
    LayerRanking,
    MixedStatesHead,
    RankedStates,
    SelectedStatesHead,
    StateComparison,
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
    assert sets[0] == default and len(set(sets)) == len(sets) <= 14
    assert all(list(layers) == sorted(set(layers)) and 0 < layers[0] <= layers[-1] <= depth for layers in sets)
    assert len({layer for layers in sets for layer in layers}) <= 6
    assert all(len(layers) == 2 for layers in sets[1:])
    single = layer_sets(depth, (depth,), single=True)
    assert single[0] == (depth,) and all(len(layers) == 1 for layers in single)


def test_sets_of_an_encoder_of_six_layers() -> None:
    assert set(layer_sets(6, (4, 5))) == {
        (2, 3), (3, 4), (4, 5), (5, 6), (3, 5), (4, 6),
    }  # fmt: skip
    assert set(layer_sets(6, (6,), single=True)) == {(2,), (3,), (4,), (5,), (6,)}


def test_the_state_in_which_the_label_lies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "STEPS", 100)
    generator = np.random.default_rng(0)
    count, tokens, width = 240, 3, 16
    truth = generator.integers(2, size=count)
    values = generator.normal(size=(count, tokens, 3, width))
    values[:, :, 1, 5] += 4 * (truth[:, None] - 0.5)  # of the three states only the second tells
    codec = Float16Codec(3, width)
    array = codec.encode(torch.from_numpy(values.reshape(-1, 3, width).astype(np.float16))).numpy()
    lengths, places = np.full(count, tokens), np.arange(count) * tokens
    stored = StoredRows([array], np.zeros(count, np.int64), places, lengths, np.zeros(count, bool), codec)
    measurement = StateComparison(
        TextFeatures(stored, torch.float32), fit_kind("single", [str(label) for label in truth]), truth,
        (np.arange(160), np.arange(160, 240)), (2, 4, 6), RECIPE, 0, Progress(),
    )  # fmt: skip
    losses, mix, mix_loss = measurement.compare([(2,), (4,), (6,), (2, 6)], two=True)
    means = {layers: float(found.mean()) for layers, found in losses.items()}
    assert all(found.shape == (80,) for found in losses.values())
    assert max(mix, key=lambda state: mix[state]) == 4 and sum(mix.values()) == pytest.approx(1)
    added = [layers for layers in means if len(layers) == 2 and 4 in layers]  # the two that the mix weighs most
    assert len(added) == 1
    assert max(means[4,], means[added[0]], mix_loss) < 0.4 < 0.6 < min(means[2,], means[6,], means[2, 6])
    # Alone a head learns what it learns in company.
    alone, _, _ = measurement.compare([(4,)], two=False)
    assert torch.equal(alone[4,], losses[4,])


def test_heads_read_their_states_only_and_a_mix_starts_even() -> None:
    features, mask = torch.randn(2, 5, 3, 8), torch.ones(2, 5, dtype=torch.bool)
    head = build_head(PooledConfig(members=1), labels=3, layers=2, width=8).eval()
    assert torch.equal(SelectedStatesHead(head, [0, 2])(features, mask), head(features[:, :, [0, 2]], mask))
    single = build_head(PooledConfig(members=1), labels=3, layers=1, width=8).eval()
    normed = torch.nn.functional.layer_norm(features, (8,))
    mixed = MixedStatesHead(single, 3).eval()
    torch.testing.assert_close(mixed(features, mask), single(normed.mean(2, keepdim=True), mask))


def ranking(*rows: tuple[tuple[int, ...], float, float]) -> LayerRanking:
    ranked = tuple(RankedStates(layers, 0.5 + behind, behind, error) for layers, behind, error in rows)
    return LayerRanking((4, 5), ranked, {4: 0.75, 6: 0.25}, 0.6, 80, from_lists(["a"]), (4, 5, 6), {})


@pytest.mark.parametrize(
    ("rows", "cheapest"),
    [
        ([((4, 6), 0.0, 0.0), ((4, 5), 0.01, 0.01), ((3,), 0.02, 0.01)], (4, 6)),
        ([((4, 6), 0.0, 0.0), ((4, 5), 0.01, 0.02), ((3,), 0.02, 0.01)], (4, 5)),
        ([((4, 6), 0.0, 0.0), ((4, 5), 0.01, 0.02), ((3,), 0.02, 0.05)], (3,)),
        ([((3, 4), 0.0, 0.0), ((4,), 0.01, 0.02), ((4, 5), 0.01, 0.05)], (4,)),
        ([], (4, 5)),
    ],
)
def test_the_shallowest_then_the_fewest_of_those_hardly_behind(
    rows: list[tuple[tuple[int, ...], float, float]], cheapest: tuple[int, ...]
) -> None:
    assert ranking(*rows).cheapest == cheapest


def test_what_is_said() -> None:
    found = ranking(((4, 6), 0.0, 0.0), ((4, 5), 0.01, 0.02))
    assert found.message((4, 5)) == (
        "layers: 4, 5; on 80 held-out rows of a sample the loss is 0.5100, of the default (4, 5) 0.5100, of the best "
        "of 2 sets (4, 6) 0.5000, of a learned mix 0.6000 (4 75%, 6 25%)"
    )
    assert ranking().message((4, 5)) == (
        "layers: 4, 5 (the default), as no label has rows enough to hold one out and measure"
    )


def test_the_same_ranking_again(toy: Dataset, tiny_encoder: Path) -> None:
    first, again = (rank(toy, load_encoder(tiny_encoder)) for _ in range(2))
    assert (first.ranked, first.mix, first.cheapest) == (again.ranked, again.mix, again.cheapest)
    assert first.ranked[0].behind == first.ranked[0].error == 0
    assert all(each.behind == pytest.approx(each.loss - first.ranked[0].loss) for each in first.ranked)
    assert first.rows == 12 and first.default == (2, 3) and first.states == (1, 2, 3)


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
    assert {(1, 2), (2, 3)} <= {each.states for each in ranked}


def test_where_no_row_can_be_held_out_the_default_is_taken(encoder: Encoder) -> None:
    data = from_lists(["my card", "a login", "the refund"], ["card", "login", "refund"])
    found = rank(data, encoder)
    assert (found.ranked, found.cheapest) == ((), (2, 3))
    assert found.keep(found.cheapest, encoder, FeatureStore(), Progress(), "int8") == 3


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
    assert said.startswith(f"layers: {', '.join(map(str, layers))}; on 12 held-out rows of a sample the loss is ")
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
    labels = toy.names
    sample = sample_rows(toy, 0, encoder, 2)
    for label in set(labels):
        assert abs(sample.names.count(label) - labels.count(label) / 2) <= 1
    tokens = float(encoder.tokenize(toy.inputs).lengths.mean())
    monkeypatch.setattr(choices, "SAMPLE_BYTES", int(30 * tokens * 2 * 2 * 32) + 1)
    assert len(sample_rows(toy, 0, encoder, 2)) == 30
    assert sample_rows(toy, 0, encoder, 2).texts == sample_rows(toy, 0, encoder, 2).texts
    assert sample_rows(toy, 1, encoder, 2).texts != sample_rows(toy, 0, encoder, 2).texts


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
    noise = torch.tensor([1.0, -1.0] * 50, dtype=torch.float64)  # of the difference: a standard error of 0.1
    separate = torch.full((100,), 2.0, dtype=torch.float64)

    def compare(self: StateComparison, sets: Sequence[tuple[int, ...]], *, two: bool) -> Any:
        losses = separate if self.features.pair_mode else separate + noise - lead
        return dict.fromkeys(sets, losses), {1: 1.0}, 0.5

    monkeypatch.setattr(StateComparison, "compare", compare)
    data = replace(toy, text_pairs=toy.texts[::-1])
    found = rank(data, encoder, modes=("joint", "separate"))
    assert found.ranked[0].loss == pytest.approx(2 - lead if ranks == "joint" else 2)
