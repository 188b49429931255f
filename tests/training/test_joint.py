"""One step of a head against the same step by plain means."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ytuning.features.codecs import Float16Codec
from ytuning.features.features import Features, PairFeatures, TextFeatures
from ytuning.features.store import StoredRows
from ytuning.heads import token_maps
from ytuning.heads.light import LightHead, text_width
from ytuning.heads.pairs import PairMode
from ytuning.heads.pooled import CrossAttentionConfig, HeadConfig, LabelTuningConfig, PooledConfig, build_head
from ytuning.training import joint
from ytuning.training.joint import JOINED_TEXTS, JointHeads, Learner
from ytuning.training.recipes import TrainingConfig

CONFIGS: list[HeadConfig] = [
    PooledConfig(side_by_side=2, width=8, dropout=0.0, token_dropout=0.0),
    CrossAttentionConfig(width=8, dropout=0.0),
    LabelTuningConfig(dropout=0.0),
]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_step_is_that_of_a_plain_optimizer(config: HeadConfig, parts: int) -> None:
    """Gradients against those that autograd accumulates, and the fused step on them against that of the plain AdamW."""
    torch.manual_seed(1)
    head = build_head(config, labels=5, layers=2, width=12).train()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    plain = copy.deepcopy(head)
    values, mask, goal = torch.randn(8, 6, 2, 12), torch.rand(8, 6) < 0.8, torch.arange(8) % 5
    mask[:, 0] = True
    loss = torch.nn.functional.cross_entropy
    rates = TrainingConfig(learning_rate=0.01, weight_decay=0.1, warmup=0.0, clip_norm=0.5)
    learner = Learner(head, goal, loss, config=rates, total=9, seed=0)
    kept = [weight for name, weight in plain.named_parameters() if name.endswith(("bias", "label_rows"))]
    decayed = [weight for weight in plain.parameters() if not any(weight is other for other in kept)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, fused=False, foreach=False)
    for _ in range(3):
        rate = min(1.0, (9 - learner.step) / 8)
        parts_of = [(rows, values[rows], mask[rows]) for rows in torch.arange(8).chunk(parts)]
        gradients = [learner.gradients(0, part, len(part[0]) / 8) for part in parts_of]
        logits = plain(values, mask).reshape(-1, 5)
        optimizer.zero_grad()
        loss(logits, goal.repeat(len(logits) // 8)).backward()
        for (name, parameter), *own in zip(plain.named_parameters(), *gradients, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(sum(own), parameter.grad, rtol=1e-4, atol=1e-6), name
            # The same ones for both: where they are nearly 0, Adam enlarges their rounding.
            parameter.grad.copy_(sum(own))
        learner.take(gradients)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * rate
        optimizer.step()
    for (name, ours), theirs in zip(head.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), name


def light_head(labels: int, mode: PairMode | None) -> LightHead:
    size = text_width(2, 12, mode)
    rows, bias = torch.randn(labels, size), torch.randn(labels)
    return LightHead.fitted(rows, bias, torch.zeros(size), layers=2, width=12, pair_mode=mode)


@pytest.mark.parametrize("mode", [None, "separate"])
@pytest.mark.parametrize("texts", [4, 4 * JOINED_TEXTS])
@pytest.mark.parametrize("at_once", [100, token_maps.MAPPED_AT_ONCE])
def test_heads_computed_as_one_give_what_each_gives(
    texts: int, mode: PairMode | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may be computed in parts, and each part ends at its longest text; two heads share products, or one."""
    monkeypatch.setattr(token_maps, "MAPPED_AT_ONCE", at_once)
    monkeypatch.setattr(joint, "HEADS_AT_ONCE", 2)
    torch.manual_seed(2)
    forms: list[tuple[HeadConfig, int]] = [
        (PooledConfig(side_by_side=2, width=8), 3),
        (CrossAttentionConfig(width=8), 4),
        (PooledConfig(side_by_side=3, width=8), 5),
        (LabelTuningConfig(), 2),
        (PooledConfig(side_by_side=2, width=6), 2),
        (PooledConfig(side_by_side=1, width=8), 4),
    ]
    heads = [build_head(config, labels=labels, layers=2, width=12, pair_mode=mode).eval() for config, labels in forms]
    heads = [light_head(3, mode), *heads, light_head(1, mode)]
    values = torch.randn(texts, 6, 2, 12)
    # The longest text is neither the first nor the last, and there are texts without padding.
    mask = torch.arange(6) < torch.tensor([4, 2, 6, 1]).repeat_interleave(texts // 4)[:, None]
    together = JointHeads(heads)
    with torch.no_grad():
        # What is joined at first is used from then on, and counted.
        for answers in (together(values, mask), together(values, mask)):
            for head, found in zip(heads, answers, strict=True):
                torch.testing.assert_close(found, head(values, mask), rtol=1e-5, atol=1e-4)
    light = sum(head.label_rows.nbytes for head in heads if isinstance(head, LightHead))
    assert (together.size > light) == (mode is None or texts == 4)


def random_features(rows: int, mode: PairMode | None) -> Features:
    """Features of texts of 1 to 6 tokens, or of pairs of them."""
    lengths = np.arange(2 * rows) % 6 + 1
    codec = Float16Codec(2, 12)
    stored = codec.encode(torch.randn(int(lengths.sum()), 2, 12)).numpy()
    where = np.zeros(2 * rows, np.int64), lengths.cumsum() - lengths, lengths, np.zeros(2 * rows, bool)
    texts = TextFeatures(StoredRows([stored], *where, codec), torch.float32)
    first, second = torch.arange(2 * rows).chunk(2)
    return texts.selected(first) if mode is None else PairFeatures(texts, first, second)


@pytest.mark.parametrize("mode", [None, "separate"])
@pytest.mark.parametrize("texts", [8, 4 * JOINED_TEXTS])
def test_each_head_answers_its_own_rows_as_it_does_alone(texts: int, mode: PairMode | None) -> None:
    torch.manual_seed(3)
    forms: list[HeadConfig] = [PooledConfig(side_by_side=1 + count, width=8, light_width=count) for count in range(3)]
    forms += [CrossAttentionConfig(width=8), LabelTuningConfig()]
    heads = [
        build_head(config, labels=labels, layers=2, width=12, pair_mode=mode).eval()
        for labels, config in enumerate(forms, 2)
    ]
    heads += [light_head(3, mode), light_head(2, mode)]
    features = random_features(texts, mode)
    rows = torch.randperm(texts)
    for share in (0.0, 0.2, 0.9, 1.0):
        wanted = torch.rand(len(heads), texts) < share
        # One head is asked for nothing, and one row is nobody's.
        wanted[1], wanted[:, 3] = False, False
        joint, whole = JointHeads(heads), JointHeads(heads).logits(features, rows)
        # From the second time on some heads may be computed as one.
        for _ in range(2):
            for own, logits, some in zip(joint.logits_where(features, rows, wanted), whole, wanted, strict=True):
                expected = logits[some] if some.any() else torch.empty(0, 0)
                torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-4)
