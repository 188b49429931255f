"""Linear probes in closed form: their errors are those of ridge regressions that are fitted without each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ytuning.data.kinds import fit_kind
from ytuning.tasks.probes import left_out_errors, linear_goal, state_kernels


def pools(rows: int, pools: int, states: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-2, 3, width)  # of some channels the values are far larger
    return 5 + scales * torch.randn(rows, pools, states, width, generator=generator)


def standardised(columns: torch.Tensor) -> np.ndarray:
    values = columns.flatten(1).double().numpy()
    return np.asarray((values - values.mean(0)) / values.std(0))


def test_the_kernel_of_a_state_is_that_of_its_standardised_columns() -> None:
    pooled = pools(30, 4, 3, 8)
    kernels = state_kernels(pooled)
    assert kernels.shape == (3, 30, 30)
    for state in range(3):
        columns = standardised(pooled[:, :, state])
        np.testing.assert_allclose(kernels[state], columns @ columns.T / 32, atol=2e-4)
        assert float(kernels[state].diagonal().mean()) == pytest.approx(1, abs=1e-4)


def test_a_constant_column_adds_nothing() -> None:
    pooled = pools(30, 1, 1, 8)
    wider = torch.cat((pooled, torch.full((30, 1, 1, 2), 999.9), torch.zeros(30, 1, 1, 1)), dim=3)
    torch.testing.assert_close(state_kernels(wider), state_kernels(pooled))
    assert not state_kernels(torch.full((30, 1, 1, 2), 0.1)).any()


@pytest.mark.parametrize("linked", [(), [(0, 7)], [(3, 4, 11), (20, 5)]])
@pytest.mark.parametrize("strength", [0.001, 0.1])
def test_errors_are_those_of_fits_without_the_row(linked: Sequence[Sequence[int]], strength: float) -> None:
    rows, width = 40, 12
    pooled = pools(rows, 1, 1, width)
    goal = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1)) + 2
    errors = left_out_errors(state_kernels(pooled)[0], goal, strength, linked)
    values, expected = standardised(pooled), np.empty(rows)
    groups = [*linked, *([row] for row in range(rows) if not any(row in group for group in linked))]
    for group in groups:
        rest = np.delete(np.arange(rows), group)
        # The kernel's columns are divided by the root of their number.
        fit = Ridge(alpha=strength * rows * width).fit(values[rest], goal.numpy()[rest])
        expected[list(group)] = np.square(goal.numpy()[list(group)] - fit.predict(values[list(group)])).sum(1)
    np.testing.assert_allclose(errors, expected, rtol=2e-3)


def test_what_a_probe_is_fitted_to() -> None:
    single = fit_kind("single", ["b", "a", "c"])
    assert linear_goal(single, single.encode(["b", "a"])).tolist() == [[0, 1, 0], [1, 0, 0]]
    ordinal = fit_kind("ordinal", ["1", "2", "3"])
    assert linear_goal(ordinal, ordinal.encode(["2", "1"])).tolist() == [[0, 1, 1], [1, 1, 1]]
    multi = fit_kind("multi", [("a",), ("b",), ("a", "b"), ()])
    assert linear_goal(multi, multi.encode([("a", "b"), ()])).tolist() == [[1, 1], [0, 0]]
    regression = fit_kind("regression", [0.0, 4.0, 1.0, 3.0])
    positions = regression.encode([1.0, 4.0])
    assert linear_goal(regression, positions).tolist() == [[position] for position in positions]
