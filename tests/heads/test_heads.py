"""Label heads: the fast forms against naive ones, masking, gradients, and configs as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tests.heads.naive_heads import naive_logits
from ytuning.errors import InputError
from ytuning.heads import pooled
from ytuning.heads.label_tuning import dropout
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import (
    CrossAttentionConfig,
    HeadConfig,
    LabelHead,
    LabelTuningConfig,
    LabelTuningHead,
    MatchingHead,
    PooledConfig,
    PooledHead,
    build_head,
    config_from_json,
    config_to_json,
)

WIDTH = 12  # of the features

# On, so that a head that drops in evaluation mode is caught.
DROPS: dict[str, Any] = {"dropout": 0.4, "token_dropout": 0.4}
# Config, labels, layers.
CASES: list[tuple[HeadConfig, int, int]] = [
    (
        PooledConfig(side_by_side=1, members=1, width=8, token_width=3, mixing_width=1, queries=1, hidden=1, **DROPS),
        2,
        1,
    ),
    (
        PooledConfig(
            side_by_side=2, members=2, width=8, token_width=4, mixing_width=3, queries=2, light_width=3, **DROPS
        ),
        3,
        2,
    ),
    (
        PooledConfig(
            side_by_side=3,
            alone=2,
            members=3,
            width=6,
            token_width=5,
            mixing_width=2,
            queries=3,
            light_width=6,
            **DROPS,
        ),
        7,
        3,
    ),
    (LabelTuningConfig(dropout=0.4), 2, 1),
    (LabelTuningConfig(scale=3.0, dropout=0.4), 5, 3),
    (CrossAttentionConfig(width=8, heads=2, blocks=1, rows_per_label=1, hidden=1, dropout=0.4), 2, 1),
    (CrossAttentionConfig(width=8, heads=4, blocks=1, rows_per_label=3, hidden=2, dropout=0.4), 9, 2),
    (CrossAttentionConfig(width=6, heads=1, blocks=2, rows_per_label=1, hidden=2, dropout=0.4), 3, 3),
    (CrossAttentionConfig(width=8, heads=2, blocks=2, rows_per_label=2, hidden=2, dropout=0.4), 4, 2),
]
NAMES = [f"{type(config).__name__}-{labels}-{layers}" for config, labels, layers in CASES]
cases = pytest.mark.parametrize(("config", "labels", "layers"), CASES, ids=NAMES)


def scrambled(config: HeadConfig, labels: int, layers: int, *, mode: PairMode | None = None) -> LabelHead:
    """A head none of whose weights is still 0 or 1."""
    torch.manual_seed(3)
    head = build_head(config, labels=labels, layers=layers, width=WIDTH, pair_mode=mode)
    with torch.no_grad():
        for tensor in (*head.parameters(), *head.buffers()):
            tensor.add_(0.3 * torch.randn_like(tensor))
    return head


def batch(layers: int, lengths: tuple[int, ...] = (5, 1, 3, 7)) -> tuple[Tensor, Tensor]:
    """Features (B, T, L, D) and mask (B, T)."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(len(lengths), max(lengths), layers, WIDTH, generator=generator)
    return features, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@cases
def test_fast_head_agrees_with_the_naive_one(config: HeadConfig, labels: int, layers: int) -> None:
    head = scrambled(config, labels, layers).eval()
    features, mask = batch(layers)
    with torch.no_grad():
        fast = head(features, mask)
    slow = naive_logits(config, head.state_dict(), features, mask)
    assert fast.shape == (len(features), labels) and fast.dtype == torch.float32
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)


@cases
def test_fast_head_of_pairs_agrees_with_the_naive_one(config: HeadConfig, labels: int, layers: int) -> None:
    head = scrambled(config, labels, layers, mode="separate").eval()
    features, mask = batch(layers, (5, 1, 3, 7, 2, 6))  # the fourth text is the first one's partner
    with torch.no_grad():
        fast = head(features, mask)
        swapped = head(features[[3, 4, 5, 0, 1, 2]], mask[[3, 4, 5, 0, 1, 2]])
    slow = naive_logits(config, head.state_dict(), features, mask, separate_pairs=True)
    assert fast.shape == (3, labels)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
    if not isinstance(config, CrossAttentionConfig):  # label rows see a set of tokens, whichever text they are of
        assert not torch.allclose(fast, swapped, atol=1e-3)


class WatchedSoftmax(TorchFunctionMode):
    """Keeps what every softmax gives."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is Tensor.softmax:
            self.shares.append(result)
        return result


def test_tokens_of_a_pair_first_attend_to_those_like_them() -> None:
    torch.manual_seed(0)
    head = build_head(PooledConfig(), labels=2, layers=2, width=WIDTH, pair_mode="separate").eval()
    tokens = torch.randn(6, 2, WIDTH)
    values, mask = torch.stack((tokens, tokens.flip(0))), torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad(), WatchedSoftmax() as watched:
        head(values, mask)
    assert isinstance(head, PooledHead)
    between = [shares for shares in watched.shares if shares.shape == (head.maps, 6, 6)]
    alike = torch.stack(between).flip(-1).diagonal(dim1=2, dim2=3)  # (2, G, 6)
    assert alike.shape == (2, head.maps, 6) and float(alike.mean()) > 0.7


def test_attention_of_long_pairs_is_computed_twice_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    head = scrambled(CASES[1][0], 3, 2, mode="separate").eval()
    assert isinstance(head, PooledHead)
    count = 3 * head.maps
    features, mask = batch(2, (5, 1, 3, 7, 2, 6))  # 5 tokens meet 7 at most

    def step() -> tuple[Tensor, tuple[Tensor, ...], set[tuple[int, ...]], list[tuple[int, ...]]]:
        """Logits, gradients, the shapes that the forward pass keeps, and those of its softmaxes over pairs' tokens."""
        kept: set[tuple[int, ...]] = set()

        def keep(tensor: Tensor) -> Tensor:
            kept.add(tuple(tensor.shape))
            return tensor

        with WatchedSoftmax() as watched:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                logits = head(features, mask)
            learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(logits.square().sum(), learned)
        shapes = [tuple(shares.shape) for shares in watched.shares]
        return logits, gradients, kept, sorted(shape for shape in shapes if len(shape) == 3 and shape[2] in (5, 7))

    logits, gradients, kept, computed = step()
    assert computed == [(count, 5, 7), (count, 7, 5)] and kept.issuperset(computed)
    monkeypatch.setattr(pooled, "SCORES_AT_ONCE", 3 * count * 7)  # three tokens of a first text at a time
    again, same, kept, computed = step()
    pieces = [(count, 2, 7), (count, 3, 5), (count, 3, 7), (count, 4, 5)]
    assert computed == pieces and kept.isdisjoint({(count, 5, 7), (count, 7, 5), *pieces})
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(same, gradients)
    with torch.inference_mode():
        torch.testing.assert_close(head(features, mask), logits.detach())


@cases
def test_bfloat16_tokens_give_nearly_the_same(config: HeadConfig, labels: int, layers: int) -> None:
    head = scrambled(config, labels, layers).eval()
    features, mask = batch(layers)
    with torch.no_grad():
        half, exact = head(features.bfloat16(), mask), head(features.bfloat16().float(), mask)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


@cases
def test_a_generator_decides_what_is_dropped(config: HeadConfig, labels: int, layers: int) -> None:
    head = scrambled(config, labels, layers).train()
    with torch.no_grad():
        first, again, other = (head(*batch(layers), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_dropout_keeps_its_share_and_the_mean() -> None:
    values = dropout(torch.ones(100, 1003), 0.3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(values.unique(), torch.tensor([0, 1 / 0.7]))
    assert float((values == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(values.mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("mode", [None, "separate"])
@cases
def test_padding_does_not_matter(config: HeadConfig, labels: int, layers: int, mode: PairMode | None) -> None:
    head = scrambled(config, labels, layers, mode=mode).eval()
    features, mask = batch(layers)
    other = torch.where(mask[..., None, None], features, 50 * torch.ones(()))
    longer = torch.cat((features, features[:, :2] * 7), 1)
    longer_mask = torch.cat((mask, torch.zeros(len(mask), 2, dtype=torch.bool)), 1)
    with torch.no_grad():
        logits = head(features, mask)
        torch.testing.assert_close(head(other, mask), logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(head(longer, longer_mask), logits, rtol=0, atol=1e-5)
        for row in range(len(logits)):
            rows = [row, len(logits) + row] if mode else [row]
            length = int(mask[rows].sum(1).max())
            alone = head(features[rows][:, :length], mask[rows][:, :length])
            torch.testing.assert_close(alone[0], logits[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [None, "separate"])
@cases
def test_gradients_reach_every_parameter(config: HeadConfig, labels: int, layers: int, mode: PairMode | None) -> None:
    head = scrambled(config, labels, layers, mode=mode).eval()  # dropout could hide a path by chance
    logits = head(*batch(layers))
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    untouched = [
        name for name, weight in head.named_parameters() if weight.grad is None or not weight.grad.abs().max() > 0
    ]
    # What is in closed form has no gradients.
    assert [name for name in untouched if not name.startswith("light.")] == []


@cases
def test_dropout_is_for_training_only(config: HeadConfig, labels: int, layers: int) -> None:
    head, (features, mask) = scrambled(config, labels, layers), batch(layers)
    with torch.no_grad():
        assert not torch.equal(head.train()(features, mask), head(features, mask))
        assert torch.equal(head.eval()(features, mask), head(features, mask))


def test_token_dropout_never_leaves_a_text_without_tokens() -> None:
    head = scrambled(
        PooledConfig(side_by_side=2, width=8, token_width=4, mixing_width=3, dropout=0.0, token_dropout=1.0),
        3,
        2,
    )
    assert isinstance(head, PooledHead)
    features, mask = batch(2)
    with torch.no_grad():
        dropped = head.average(head.train()(features, mask))
        first_token = head.eval()(features[:, :1], mask[:, :1])
    torch.testing.assert_close(dropped, first_token)


@pytest.mark.parametrize(("labels", "multiplications"), [(2, 2 * 5 * WIDTH), (20, 8 * (WIDTH + 41))])
def test_cross_attention_takes_the_cheaper_form(labels: int, multiplications: int) -> None:
    head = scrambled(CrossAttentionConfig(width=8, heads=2, blocks=1, rows_per_label=2), labels, 2).eval()

    def operations(tokens: int) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            head(*batch(2, (tokens,)))
        return counter.get_total_flops()

    # Scores and pools, or keys and values with scores and pools: both twice, and a multiplication has its addition.
    assert operations(7) - operations(6) == 2 * 2 * multiplications


@cases
def test_config_survives_json(config: HeadConfig, labels: int, layers: int) -> None:
    content = json.loads(json.dumps(config_to_json(config)))
    assert config_from_json(content) == config
    assert content["form"] in ("pooled", "cross_attention", "label_tuning")  # not taken out of the caller's mapping


@pytest.mark.parametrize("value", [{"form": "linear"}, {"width": 8}, {"form": None}])
def test_unknown_form_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(
        InputError,
        match=r"the head's form must be one of 'pooled', 'cross_attention', 'label_tuning', 'light'\. Got .* instead\.",
    ):
        config_from_json(value)


def test_unknown_field_is_refused() -> None:
    whole = config_to_json(PooledConfig())
    with pytest.raises(InputError, match=r"^the head's field 'depth' is unknown\. A head of the form 'pooled' has "):
        config_from_json({**whole, "depth": 3})
    with pytest.raises(InputError, match=r"^the head's field 'mixing_width' is missing\. .*, width\. Train it again$"):
        config_from_json({name: value for name, value in whole.items() if name != "mixing_width"})


def test_width_must_fit_the_heads() -> None:
    with pytest.raises(InputError, match=r"^width must be a multiple of heads \(3\)\. Got 8 instead\.$"):
        build_head(CrossAttentionConfig(width=8, heads=3), labels=2, layers=1, width=WIDTH)


def test_members_learn_apart_and_answer_together() -> None:
    head = scrambled(PooledConfig(side_by_side=3, members=2, width=8, dropout=0.0, token_dropout=0.0), 4, 2)
    assert isinstance(head, PooledHead)
    features, mask = batch(2)
    with torch.no_grad():
        apart, together = head.train()(features, mask), head.eval()(features, mask)
    assert apart.shape == (head.members, len(features), 4) and head.members == 10
    torch.testing.assert_close((apart * head.member_weights[:, None, None]).mean(0), together)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_kinds_of_members_read_their_own_hidden_states(layers: int) -> None:
    head = scrambled(PooledConfig(side_by_side=2, alone=1, members=1, width=8), 3, layers).eval()
    assert isinstance(head, PooledHead)
    features, mask = batch(layers)
    shared = range(1) if layers == 1 else range(2) if layers == 2 else range(layers - 1)
    with torch.no_grad():
        before = head.match(head.text(features, mask))
        for state in range(layers):
            changed = features.clone()
            changed[:, :, state] += 1
            moved = (head.match(head.text(changed, mask)) != before).flatten(1).any(1).tolist()
            assert moved == [state == 0, state in shared, state in shared, state == layers - 1]


def test_weights_of_kinds_of_members() -> None:
    head = scrambled(PooledConfig(side_by_side=3, alone=2, members=2, width=8), 4, 3).eval()
    assert isinstance(head, PooledHead)
    features, mask = batch(3)
    weighted = head.with_group_weights([0.5, 0.2, 0.0])
    each = torch.tensor([0.5 / 4] * 4 + [0.2 / 6] * 6 + [0.0] * 4)
    with torch.no_grad():
        members = head.match(head.text(features, mask))
        expected = (members * (each / each.sum())[:, None, None]).sum(0)
        torch.testing.assert_close(weighted(features, mask), expected)


@pytest.mark.parametrize("light", [0, 5])
def test_heads_joined_and_taken_apart(light: int) -> None:
    """Heads of several seeds have light members that say the same of a text, and count it differently."""
    configs = [PooledConfig(side_by_side=side, alone=4 - side, width=8, light_width=light) for side in (2, 1, 3)]
    heads = [head for head in (scrambled(config, 4, 3).eval() for config in configs) if isinstance(head, PooledHead)]
    assert len(heads) == 3
    for number, head in enumerate(heads):
        if head.light is not None and heads[0].light is not None:
            head.light.load_state_dict(heads[0].light.state_dict())
        torch.manual_seed(number)
        with torch.no_grad():
            head.label_rows.copy_(torch.randn_like(head.label_rows))
            head.member_weights.copy_(torch.rand(head.members))
        head.member_weights /= head.member_weights.mean()
    features, mask = batch(3)
    joined, apart = PooledHead.joined(heads), PooledHead.joined_texts(heads)
    with torch.no_grad():
        parts = PooledHead.split_by_head(apart.text(features, mask), heads)
        for head, part in zip(heads, parts, strict=True):
            torch.testing.assert_close(part, head.text(features, mask)[: len(part)])
        total = sum(head.members * head(features, mask) for head in heads)
        torch.testing.assert_close(joined(features, mask), total / sum(head.members for head in heads))
    assert joined.member_weights.mean().item() == pytest.approx(1)


# --- label rows that start from texts -------------------------------------------------------------------------------


def test_label_tuning_starts_as_the_cosine_of_text_and_label() -> None:
    head = LabelTuningHead(LabelTuningConfig(scale=4.0), labels=3, layers=1, width=WIDTH).eval()
    features, mask = batch(1)
    with torch.no_grad():
        head.center.fill_(0.1)
        head.start_rows(head.text(features, mask).transpose(0, 1), torch.tensor([2, 0, 2, 1]))
        logits = head(features, mask)
    means = torch.stack([text[there, 0].mean(0) for text, there in zip(features, mask, strict=True)])
    texts = torch.nn.functional.normalize(means - 0.1, dim=1)
    rows = torch.nn.functional.normalize(torch.stack((texts[1], texts[3], (texts[0] + texts[2]) / 2)), dim=1)
    torch.testing.assert_close(logits, 4.0 * texts @ rows.T)


@pytest.mark.parametrize("config", [PooledConfig(side_by_side=2, width=8), LabelTuningConfig()])
def test_a_text_is_most_like_the_label_that_started_from_it(config: HeadConfig) -> None:
    torch.manual_seed(0)
    head = build_head(config, labels=4, layers=2, width=WIDTH).eval()
    assert isinstance(head, MatchingHead)
    features, mask = batch(2)
    with torch.no_grad():
        head.start_rows(head.text(features, mask).transpose(0, 1), torch.tensor([3, 1, 0, 2]))
        assert head(features, mask).argmax(1).tolist() == [3, 1, 0, 2]
    lengths = head.label_rows.detach().norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.parametrize("config", [PooledConfig(side_by_side=2, width=8), LabelTuningConfig()])
def test_labels_without_a_text_keep_their_rows(config: HeadConfig) -> None:
    head = scrambled(config, 3, 1).eval()
    assert isinstance(head, MatchingHead)
    before = head.label_rows.detach().clone()
    with torch.no_grad():
        head.start_rows(head.text(*batch(1)).transpose(0, 1)[:2], torch.tensor([2, 0]))
    assert torch.equal(head.label_rows[:, 1], before[:, 1])
    assert not torch.equal(head.label_rows[:, 0], before[:, 0])


@pytest.mark.parametrize("config", [PooledConfig(side_by_side=2, width=8), LabelTuningConfig(scale=3.0)])
def test_a_label_less_leaves_the_others_as_they_were(config: HeadConfig) -> None:
    head = scrambled(config, 3, 1).eval()
    assert isinstance(head, MatchingHead)
    features, mask = batch(1)
    with torch.no_grad():
        torch.testing.assert_close(head.without_label(1)(features, mask), head(features, mask)[:, [0, 2]])


@pytest.mark.parametrize("config", [PooledConfig(side_by_side=2, width=8), LabelTuningConfig(scale=3.0)])
def test_a_label_more_leaves_the_others_as_they_were(config: HeadConfig) -> None:
    head = scrambled(config, 3, 1).eval()
    assert isinstance(head, MatchingHead)
    row, bias = torch.randn(head.members, head.match_width), torch.randn(head.members)
    grown = head.with_label(row, bias)
    features, mask = batch(1)
    with torch.no_grad():
        text, logits = head.text(features, mask), grown(features, mask)
        new = head.average((torch.einsum("ebh,eh->eb", text, row) + bias[:, None])[..., None])
        torch.testing.assert_close(logits, torch.cat((head(features, mask), new), 1))
