"""Rates and means of clustered items: Wilson where clusters are single, coverage where they are not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from prismcap.evaluate.intervals import Z_95, wilson
from prismcap.evaluate.statistics.clustered import (
    ClusteredItems,
    clustered_mean,
    clustered_rate,
    effective_n,
    macro_rate,
)


def single(n: int) -> list[str]:
    return [str(item) for item in range(n)]


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (37, 120), (1, 1)])
def test_flags_of_single_clusters_have_wilsons_interval(right: int, n: int) -> None:
    assert clustered_rate([1] * right + [0] * (n - right), single(n)) == wilson(right, n)


def test_copies_in_a_cluster_do_not_narrow_the_interval() -> None:
    flags = [0, 1, 1, 0, 1, 1, 1, 0, 0, 1] * 5
    once = clustered_mean(flags, single(50))
    copied = clustered_rate(np.repeat(flags, 8).tolist(), np.repeat(single(50), 8).tolist())
    assert (copied.rate, copied.low, copied.high) == pytest.approx((once.mean, once.low, once.high))
    assert copied.n == 400


def test_unequal_clusters_against_every_resample() -> None:
    values = {"p": [1, 0], "q": [0, 0, 0], "r": [1]}
    flags = [value for group in values.values() for value in group]
    clusters = [name for name, group in values.items() for _ in group]
    rates = [
        sum(sum(values[name]) for name in drawn) / sum(len(values[name]) for name in drawn)
        for drawn in itertools.product(values, repeat=3)
    ]
    found = clustered_rate(flags, clusters, num_resamples=50_000)
    low, high = np.quantile(rates, [0.025, 0.975], method="inverted_cdf")
    assert found.rate == pytest.approx(1 / 3)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_covers_the_truth_and_wilsons_would_not() -> None:
    rng = np.random.default_rng(4)
    runs, num_pictures, questions = 400, 60, 10
    clusters = [str(picture) for picture in range(num_pictures) for _ in range(questions)]
    covered = {"clustered": 0, "wilson": 0}
    for run in range(runs):
        ability = np.repeat(rng.choice([0.3, 0.9], size=num_pictures), questions)
        flags = (rng.random(len(clusters)) < ability).astype(int)
        found = clustered_rate(flags.tolist(), clusters, seed=run, num_resamples=400)
        covered["clustered"] += found.low <= 0.6 <= found.high
        naive = wilson(int(flags.sum()), len(flags))
        covered["wilson"] += naive.low <= 0.6 <= naive.high
    assert 0.91 <= covered["clustered"] / runs <= 0.98
    assert covered["wilson"] / runs < 0.85


@pytest.mark.parametrize("value", [0, 1])
def test_all_alike_is_known_as_well_as_there_are_clusters(value: int) -> None:
    found = clustered_rate([value] * 100, [str(item // 10) for item in range(100)])
    expected = wilson(10 * value, 10)
    assert (found.rate, found.low, found.high, found.n) == (value, expected.low, expected.high, 100)


def test_one_cluster_tells_next_to_nothing() -> None:
    found = clustered_rate([1, 0, 1, 1], ["same"] * 4)
    assert found.rate == 0.75 and found.high - found.low > 0.7


def test_values_between_are_means_not_flags() -> None:
    """Refusals that count 1/k: the bootstrap agrees with normal theory."""
    values = np.random.default_rng(8).choice([0.0, 0.25, 1.0], size=500)
    found = clustered_rate(values.tolist(), single(500))
    error = Z_95 * values.std() / math.sqrt(500)
    assert found.rate == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.01)


def test_macro_weighs_categories_alike() -> None:
    values = [1.0] * 90 + [0.0] * 10
    categories = ["easy"] * 90 + ["hard"] * 10
    assert macro_rate(values, single(100), categories).rate == 0.5
    rng = np.random.default_rng(6)
    flags = (rng.random(600) < 0.4).astype(float)
    names = rng.choice(["x", "y", "z"], size=600, p=[0.7, 0.2, 0.1])
    found = macro_rate(flags.tolist(), single(600), names.tolist())
    groups = [flags[names == name] for name in ("x", "y", "z")]
    error = Z_95 * math.sqrt(sum(group.var() / len(group) for group in groups)) / 3
    assert found.rate == pytest.approx(sum(group.mean() for group in groups) / 3)
    assert found.low == pytest.approx(found.rate - error, abs=0.015)
    assert found.high == pytest.approx(found.rate + error, abs=0.015)


def test_columns_together_are_columns_alone() -> None:
    rng = np.random.default_rng(9)
    values = rng.integers(0, 2, size=(60, 2)).astype(float)
    clusters = [str(item // 3) for item in range(60)]
    rates, macros = ClusteredItems(clusters, seed=1).rates(
        values, np.ones((60, 2), dtype=bool), {"both": [0, 1]}
    )
    for column, found in enumerate(rates):
        alone = clustered_rate(values[:, column].tolist(), clusters, seed=1)
        assert (found.rate, found.low, found.high) == pytest.approx((alone.rate, alone.low, alone.high))
    assert macros["both"].rate == pytest.approx((rates[0].rate + rates[1].rate) / 2)


def test_the_design_effect_of_copies_is_their_number() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    copied = np.repeat(values, 5).tolist()
    assert effective_n(copied, np.repeat(single(40), 5).tolist()) == pytest.approx(40)
    assert effective_n(values.tolist(), single(40)) == pytest.approx(40)
    assert effective_n([1.0, 1.0], ["x", "x"]) == 2


def test_the_design_effect_gives_the_bootstraps_width() -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(size=80), 6) + rng.normal(size=480)
    clusters = np.repeat(single(80), 6).tolist()
    found = clustered_mean(values.tolist(), clusters)
    error = Z_95 * values.std() / math.sqrt(effective_n(values.tolist(), clusters))
    assert found.high - found.low == pytest.approx(2 * error, rel=0.06)


@pytest.mark.parametrize(
    ("values", "clusters"), [([], []), ([1.0], ["x", "y"]), ([1.5], ["x"]), ([float("nan")], ["x"])]
)
def test_what_is_no_rate_is_refused(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(ValueError, match=r"one cluster per value|0\.\.1"):
        clustered_rate(values, clusters)
    with pytest.raises(ValueError, match="at least one item"):
        ClusteredItems(["x"]).rates(np.ones((1, 1)), np.zeros((1, 1), dtype=bool))
