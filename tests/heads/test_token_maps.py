"""The maxima over mapped tokens against plain sums, with and without gradients."""

from __future__ import annotations

import pytest
import torch

from ytuning.heads import token_maps
from ytuning.heads.token_maps import GroupMaps, TokenMaps, masked_maxima, state_groups

WIDTH, NUMBERS = 12, 5


def head_maps(layers: int, counts: tuple[int, int, int]) -> GroupMaps:
    groups = zip(state_groups(layers), counts, strict=True)
    return tuple(tuple(torch.randn(count, NUMBERS, WIDTH) for _ in states) for states, count in groups)


@pytest.mark.parametrize("at_once", [40, token_maps.MAPPED_AT_ONCE])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_maxima_are_those_of_plain_sums(
    layers: int, gradients: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_maps, "MAPPED_AT_ONCE", at_once)
    torch.manual_seed(0)
    heads = [head_maps(layers, counts) for counts in ((1, 1, 1), (2, 1, 2), (1, 3, 1))]
    states, mask = torch.randn(7, 6, layers, WIDTH), torch.rand(7, 6) < 0.6
    mask[:, 0] = True
    joined = [TokenMaps(heads[:2], layers, torch.float32), TokenMaps(heads[2:], layers, torch.float32)]
    with torch.set_grad_enabled(gradients):
        found = masked_maxima(joined, states, mask)
    for head, own in zip(heads, found, strict=True):
        expected = []
        for group, positions in zip(head, state_groups(layers), strict=True):
            for number in range(len(group[0])):
                mapped = torch.stack(
                    [states[:, :, at] @ maps[number].T for at, maps in zip(positions, group, strict=True)]
                )
                expected.append(mapped.sum(0).masked_fill(~mask[..., None], -torch.inf).amax(1))
        torch.testing.assert_close(own, torch.cat(expected, 1))


def test_a_text_whose_tokens_are_all_hidden_has_no_maximum() -> None:
    maps = TokenMaps([head_maps(2, (1, 1, 1))], 2, torch.float32)
    with torch.inference_mode():
        (found,) = masked_maxima([maps], torch.randn(2, 3, 2, WIDTH), torch.zeros(2, 3, dtype=torch.bool))
    assert bool((found == -torch.inf).all())
