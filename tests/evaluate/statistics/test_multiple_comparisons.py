"""Holm against its definition as a sequence of tests, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcap.evaluate.statistics.multiple import holm, holm_by_family

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def rejected_step_by_step(p_values: list[float], alpha: float) -> set[int]:
    """Holm's own procedure: the smallest against alpha/m, the next against alpha/(m-1), until one fails."""
    rejected: set[int] = set()
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        if p_values[position] * (len(p_values) - rank) > alpha:
            break
        rejected.add(position)
    return rejected


@given(P_VALUES, st.floats(0.001, 0.5))
def test_adjusted_values_reject_what_the_procedure_rejects(p_values: list[float], alpha: float) -> None:
    adjusted = holm(p_values)
    assert {at for at, p in enumerate(adjusted) if p <= alpha} == rejected_step_by_step(p_values, alpha)


@given(P_VALUES)
def test_between_the_raw_value_and_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values)) + 1e-12 or adjusted == max(holm(p_values))
        assert adjusted <= 1


def test_a_worked_example() -> None:
    # 4 * 0.01, 3 * 0.02, then not below the one before: 2 * 0.03 = 0.06, 0.04 -> 0.06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_any_false_finding_in_a_family_is_as_rare_as_promised() -> None:
    rng = np.random.default_rng(2)
    families = 2000
    p_values = rng.random((families, 10))
    any_false = sum(min(holm(row.tolist())) <= 0.05 for row in p_values) / families
    uncorrected = float((p_values <= 0.05).any(axis=1).mean())
    assert any_false <= 0.065 and uncorrected > 0.35


def test_families_do_not_see_each_other() -> None:
    p_values = [0.01, 0.02, 0.03, 0.04]
    assert holm_by_family(["x", "y", "x", "y"], p_values) == pytest.approx([0.02, 0.04, 0.03, 0.04])
    assert holm([]) == []


@pytest.mark.parametrize("bad", [[1.2], [-0.1], [float("nan")]])
def test_what_is_no_probability_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm(bad)
