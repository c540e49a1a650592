"""The minimum detectable difference is found in 80% of simulated comparisons, and Connor's formula holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, ttest_ind, ttest_rel

from prismcap.evaluate.statistics.paired import mcnemar
from prismcap.evaluate.statistics.power import (
    minimum_detectable,
    minimum_detectable_flags,
    minimum_detectable_unpaired,
)

RUNS = 1500  # the error of a share of 0.8 is then one point


@pytest.mark.parametrize(("n", "discordance"), [(400, 0.3), (1500, 0.2), (2000, 0.02)])
def test_mcnemar_finds_the_minimum_in_four_of_five_comparisons(n: int, discordance: float) -> None:
    difference = minimum_detectable_flags(n, discordance)
    rng = np.random.default_rng(7)
    only_b = (discordance + difference) / 2
    draws = rng.multinomial(n, [only_b, discordance - only_b, 1 - discordance], size=RUNS)
    by_counts: dict[tuple[int, int], bool] = {}
    for b, a, _ in draws.tolist():
        if (a, b) not in by_counts:
            pairs = [False] * b + [True] * a, [True] * b + [False] * a
            by_counts[a, b] = mcnemar(*pairs) <= 0.05
    power = sum(by_counts[a, b] for b, a, _ in draws.tolist()) / RUNS
    # the exact test is stricter than the normal approximation, the more so with few discordant pairs
    assert 0.72 <= power <= 0.83


@pytest.mark.parametrize(("n", "discordance"), [(250, 0.25), (1500, 0.4), (600, 0.1)])
def test_connors_formula_gives_n_back(n: int, discordance: float) -> None:
    found = minimum_detectable_flags(n, discordance)
    z_alpha, z_power = norm.ppf(0.975), norm.ppf(0.8)
    needed = (z_alpha * math.sqrt(discordance) + z_power * math.sqrt(discordance - found**2)) ** 2 / found**2
    assert needed == pytest.approx(n, rel=1e-6)


def test_with_no_discordant_pair_a_difference_must_bring_its_own() -> None:
    """With D = d, sqrt(n d) = 1.96 + 0.84 sqrt(1 - d): about eight pairs, all on one side."""
    found = minimum_detectable_flags(600, 0.0)
    assert math.sqrt(600 * found) == pytest.approx(1.959964 + 0.841621 * math.sqrt(1 - found), abs=1e-5)
    assert minimum_detectable_flags(3, 0.0) == 1.0


def test_real_values_paired_and_unpaired_by_simulation() -> None:
    rng = np.random.default_rng(3)
    n = 200
    paired = minimum_detectable(n, spread=2.0)
    a = rng.normal(0, 5, size=(RUNS, n))
    b = a + rng.normal(paired, 2.0, size=(RUNS, n))
    assert (ttest_rel(b, a, axis=1).pvalue <= 0.05).mean() == pytest.approx(0.8, abs=0.03)
    unpaired = minimum_detectable_unpaired(n, 2.0, 2 * n, 3.0)
    a, b = rng.normal(0, 2.0, size=(RUNS, n)), rng.normal(unpaired, 3.0, size=(RUNS, 2 * n))
    assert (ttest_ind(b, a, axis=1, equal_var=False).pvalue <= 0.05).mean() == pytest.approx(0.8, abs=0.03)


def test_more_items_find_less_and_more_discordance_hides_more() -> None:
    by_n = [minimum_detectable_flags(n, 0.2) for n in (100, 400, 1600)]
    by_discordance = [minimum_detectable_flags(400, share) for share in (0.0, 0.1, 0.3, 1.0)]
    assert by_n == sorted(by_n, reverse=True) and by_discordance == sorted(by_discordance)


@pytest.mark.parametrize(("n", "spread"), [(0, 1.0), (-1, 1.0), (10, -1.0), (float("nan"), 1.0)])
def test_what_has_no_power_is_refused(n: float, spread: float) -> None:
    for function in (minimum_detectable, minimum_detectable_flags):
        with pytest.raises(ValueError, match="power needs"):
            function(n, spread)
    with pytest.raises(ValueError, match="share of pairs"):
        minimum_detectable_flags(10, 1.5)
