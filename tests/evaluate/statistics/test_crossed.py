"""Intervals over seeds and items: by hand, against a formula of its own, and by what they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t, ttest_1samp

from prismcap.evaluate.intervals import wilson
from prismcap.evaluate.statistics.crossed import crossed_mean, nested_mean
from prismcap.evaluate.statistics.paired import paired_difference

RUNS, SEEDS, ITEMS = 1500, 3, 200  # the error of a share of 0.95 is then 0.6 points
Matrix = NDArray[np.float64]


def single(n: int) -> list[str]:
    return [str(item) for item in range(n)]


def by_formula(values: Matrix) -> tuple[float, float]:
    """Variance and half the interval, by the variance components, one after the other, written out."""
    seeds, items = values.shape
    grand = values.mean()
    ms = {"seed": 0.0, "item": 0.0, "rest": 0.0}
    for s in range(seeds):
        ms["seed"] += items * (values[s].mean() - grand) ** 2 / (seeds - 1)
        for i in range(items):
            rest = values[s, i] - values[s].mean() - values[:, i].mean() + grand
            ms["rest"] += rest**2 / ((seeds - 1) * (items - 1))
    for i in range(items):
        ms["item"] += seeds * (values[:, i].mean() - grand) ** 2 / (items - 1)
    of_seed = (ms["seed"] - ms["rest"]) / items
    of_item = (ms["item"] - ms["rest"]) / seeds
    variance = of_seed / seeds + of_item / items + ms["rest"] / (seeds * items)
    limit_of_seeds = t.ppf(0.975, seeds - 1) * math.sqrt(of_seed / seeds + ms["rest"] / (seeds * items))
    limit_of_items = t.ppf(0.975, items - 1) * math.sqrt(of_item / items)
    return variance, math.hypot(limit_of_seeds, limit_of_items)


def drawn(rng: np.random.Generator, of_seed: float, of_item: float, rest: float = 1.0) -> Matrix:
    values: Matrix = (
        rng.normal(0, of_seed, size=(SEEDS, 1))
        + rng.normal(0, of_item, size=(1, ITEMS))
        + rng.normal(0, rest, size=(SEEDS, ITEMS))
    )
    return values


def test_two_seeds_and_two_items_by_hand() -> None:
    """Rows 1 3 and 5 11: mean 5; rows' means 2 and 8, columns' 3 and 7; MS 36, 16 and 4. Both parts have one
    degree of freedom, and so has their sum."""
    found = crossed_mean(np.array([[1.0, 3.0], [5.0, 11.0]]), single(2))
    assert found.mean == 5
    assert found.error == pytest.approx(math.sqrt((36 + 16 - 4) / 4))
    assert found.df == pytest.approx(1)
    assert found.high - found.mean == pytest.approx(t.ppf(0.975, found.df) * found.error)
    assert found.p == pytest.approx(2 * t.sf(5 / found.error, found.df))
    assert (found.n_seeds, found.n_items, found.n_clusters, found.design) == (2, 2, 2, "crossed")


def test_mean_squares_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(2)
    for _ in range(5):
        values = drawn(rng, 1.0, 1.5)
        variance, half = by_formula(values)
        found = crossed_mean(values, single(ITEMS))
        assert found.error**2 == pytest.approx(variance)
        assert found.high - found.mean == pytest.approx(half) and SEEDS - 1 < found.df < ITEMS - 1
        assert found.high - found.mean == pytest.approx(t.ppf(0.975, found.df) * found.error)


def test_never_below_what_one_way_alone_brings() -> None:
    """Seeds that happen to agree to the last digit say nothing against the spread of the items."""
    rng = np.random.default_rng(5)
    values = drawn(rng, 0.0, 0.3)
    values -= values.mean(axis=1, keepdims=True)
    found = crossed_mean(values, single(ITEMS))
    items = values.mean(axis=0)
    assert found.error == pytest.approx(items.std(ddof=1) / math.sqrt(ITEMS))
    assert found.df == ITEMS - 1


@pytest.mark.parametrize(
    ("of_seed", "of_item"), [(0.0, 0.0), (0.0, 1.0), (0.05, 0.5), (0.1, 1.0), (0.3, 0.5), (1.0, 0.5)]
)
def test_the_interval_covers_the_truth(of_seed: float, of_item: float) -> None:
    rng = np.random.default_rng(11)
    names = single(ITEMS)
    found = [crossed_mean(drawn(rng, of_seed, of_item), names) for _ in range(RUNS)]
    covered = sum(estimate.low <= 0 <= estimate.high for estimate in found) / RUNS
    assert 0.93 <= covered <= 0.975  # 93 to 97%, and what the simulation is off by


def test_a_bootstrap_over_items_alone_does_not() -> None:
    """With seeds that spread a tenth as far as items do, it misses the truth far too often."""
    rng = np.random.default_rng(12)
    covered = {"items": 0, "crossed": 0}
    for run in range(300):
        values = drawn(rng, 0.3, 0.5)
        means = values.mean(axis=0)
        alone = paired_difference([0.0] * ITEMS, means.tolist(), seed=run, num_resamples=300)
        both = crossed_mean(values, single(ITEMS))
        covered["items"] += alone.low <= 0 <= alone.high
        covered["crossed"] += both.low <= 0 <= both.high
    assert covered["items"] / 300 < 0.6 < 0.9 < covered["crossed"] / 300


def test_flags_of_questions_about_one_picture_are_covered_too() -> None:
    """Differences of right and wrong, five questions to a picture, with seeds that differ."""
    rng = np.random.default_rng(13)
    pictures, questions = 60, 5
    clusters = [str(picture) for picture in range(pictures) for _ in range(questions)]
    covered = {"pictures": 0, "questions": 0}
    for _ in range(600):
        logits = rng.normal(0, 0.3, size=(SEEDS, 1)) + rng.normal(0, 1.0, size=(1, pictures))
        ability = np.repeat(1 / (1 + np.exp(-logits)), questions, axis=1)
        values = (rng.random(ability.shape) < ability).astype(float)
        truth = 0.5
        by_picture = crossed_mean(values, clusters, (0.0, 1.0))
        by_question = crossed_mean(values, single(len(clusters)), (0.0, 1.0))
        covered["pictures"] += by_picture.low <= truth <= by_picture.high
        covered["questions"] += by_question.low <= truth <= by_question.high
    assert 0.925 <= covered["pictures"] / 600 <= 0.985
    assert covered["questions"] < covered["pictures"]


def test_small_p_values_are_as_rare_as_they_say_where_three_seeds_vary_much() -> None:
    """Without the seeds' own test 0.8% fall below 0.001: seeds that agree by chance hide their part."""
    rng = np.random.default_rng(0)
    clusters = [str(item) for item in range(200)]
    num_draws, below = 2000, {0.01: 0, 0.001: 0}
    for _ in range(num_draws):
        values = rng.normal(0, 0.25, (3, 1)) + rng.normal(0, 0.55, (1, 200)) + rng.normal(0, 0.55, (3, 200))
        p = crossed_mean(values, clusters).p
        for level in below:
            below[level] += p < level
    assert below[0.01] / num_draws <= 0.0125
    assert below[0.001] / num_draws <= 0.002


def test_minimum_detectable_is_found_in_four_of_five() -> None:
    """Where the degrees of freedom are few and known: the spread is all between the seeds."""
    rng = np.random.default_rng(14)
    error = 1.0 / math.sqrt(SEEDS)
    true = (t.ppf(0.975, SEEDS - 1) + t.ppf(0.8, SEEDS - 1)) * error
    found = 0
    least = []
    for _ in range(800):
        estimate = crossed_mean(drawn(rng, 1.0, 0.01, 0.01) + true, single(ITEMS))
        found += estimate.p < 0.05
        least.append(estimate.minimum_detectable**2)
    # the shifted t that the formula uses is an approximation of the noncentral one
    assert 0.75 <= found / 800 <= 0.88
    assert math.sqrt(np.mean(least)) == pytest.approx(true, rel=0.06)


def test_clusters_of_one_size_are_their_means() -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(size=(3, 40))
    clusters = [str(item // 4) for item in range(40)]
    found = crossed_mean(values, clusters)
    means = values.reshape(3, 10, 4).mean(axis=2)
    expected = crossed_mean(means, single(10))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (found.n_items, found.n_clusters) == (40, 10)


def test_a_large_cluster_weighs_as_its_items_do() -> None:
    """One seed: the linearised ratio of sums, by hand. Sizes 3 and 1, sums 3 and 0: mean 3/4."""
    found = crossed_mean(np.array([[1.0, 1.0, 1.0, 0.0]]), ["a", "a", "a", "b"])
    residuals = [3 - 3 * 0.75, 0 - 1 * 0.75]
    assert found.mean == 0.75
    variance = (2 / 4) ** 2 * sum(residual**2 for residual in residuals) / (2 - 1) / 2
    assert found.error == pytest.approx(math.sqrt(variance))


def test_one_seed_is_the_t_test_over_items_and_one_cluster_over_seeds() -> None:
    values = np.random.default_rng(7).normal(0.2, 1, size=(1, 50))
    found = crossed_mean(values, single(50))
    expected = ttest_1samp(values[0], 0.0)
    interval = expected.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((*interval, expected.pvalue))
    assert found.design == "items" and found.df == 49
    over_seeds = crossed_mean(values.T, ["one"])
    assert (over_seeds.low, over_seeds.high) == pytest.approx((*interval,))
    assert over_seeds.design == "seeds" and over_seeds.n_seeds == 50
    with pytest.raises(ValueError, match="two seeds or two clusters"):
        crossed_mean(values[:, :4].T[:1], ["one"])


def test_what_never_varied_has_wilsons_bound_and_no_claim() -> None:
    """No item changed in any seed: it does not follow that none ever would."""
    found = crossed_mean(np.zeros((3, 100)), single(100), (-1.0, 1.0))
    unseen = wilson(0, 100).high
    assert (found.mean, found.low, found.high) == pytest.approx((0, -unseen, unseen))
    assert found.p == 1 and 1.4 * unseen < found.minimum_detectable < 1.5 * unseen
    right = crossed_mean(np.ones((3, 100)), single(100), (0.0, 1.0))
    assert (right.low, right.high) == (pytest.approx(1 - unseen), 1.0)
    scores = crossed_mean(np.full((3, 100), 2.5), single(100))
    assert (scores.low, scores.high) == (2.5, 2.5)


def test_the_interval_stays_within_bounds() -> None:
    values = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    found = crossed_mean(values, single(3), (-1.0, 1.0))
    assert found.high == 1.0 and -1.0 <= found.low < found.mean


def test_seeds_with_items_of_their_own() -> None:
    rng = np.random.default_rng(8)
    values = [rng.normal(shift, 1, size=30) for shift in (0.0, 2.0, 4.0)]
    found = nested_mean(values, [single(30)] * 3)
    means = np.array([own.mean() for own in values])
    expected = ttest_1samp(means, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((*expected,))
    assert (found.n_items, found.n_seeds, found.df, found.design) == (90, 3, 2, "nested")
    alike = [own - own.mean() for own in values]
    within = nested_mean(alike, [single(30)] * 3)
    assert within.error**2 == pytest.approx(sum(own.var(ddof=1) / 30 for own in alike) / 9)
    assert within.df > 50
    with pytest.raises(ValueError, match="two seeds or more"):
        nested_mean(values[:1], [single(30)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 3)), "a cluster per item"),
        (np.zeros(4), "a cluster per item"),
        (np.full((2, 4), np.nan), "finite"),
        (np.full((2, 4), 1.5), "must lie in"),
    ],
)
def test_bad_values_are_refused(values: Matrix, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossed_mean(values, single(4), (-1.0, 1.0))
