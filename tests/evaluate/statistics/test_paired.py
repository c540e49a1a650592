"""Differences of pairs against normal theory and brute force; McNemar against its definition."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcap.evaluate.intervals import Z_95, wilson
from prismcap.evaluate.statistics.paired import discordance, mcnemar, paired_difference, paired_differences


def test_paired_difference_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(5, 3, size=400)  # large spread between items, which the pairing removes
    b = a + rng.normal(0.4, 0.5, size=400)
    found = paired_difference(a.tolist(), b.tolist(), seed=1)
    error = Z_95 * np.std(b - a, ddof=1) / math.sqrt(400)
    assert found.mean == pytest.approx(float((b - a).mean()))
    assert found.low == pytest.approx(found.mean - error, abs=0.01)
    assert found.high == pytest.approx(found.mean + error, abs=0.01)
    assert found.low > 0


def test_unpaired_resampling_would_be_caught() -> None:
    """A planted fault: shuffling one side keeps the mean, and the interval must get much wider."""
    rng = np.random.default_rng(3)
    a = rng.normal(5, 3, size=400)
    b = a + rng.normal(0.4, 0.5, size=400)
    paired = paired_difference(a.tolist(), b.tolist())
    unpaired = paired_difference(a.tolist(), rng.permutation(b).tolist())
    assert unpaired.high - unpaired.low > 4 * (paired.high - paired.low)


def test_paired_difference_is_reproducible_and_chunks_do_not_matter() -> None:
    a, b = [1.0, 2.0, 4.0], [2.0, 2.5, 4.0]
    assert paired_difference(a, b, seed=5) == paired_difference(a, b, seed=5)
    assert paired_difference([1.0], [3.0]).as_dict() == {
        "mean": 2.0,
        "low": 2.0,
        "high": 2.0,
        "n": 1,
        "few_items": True,
    }
    many = [0.0] * 2001, [1.0] * 2001
    assert paired_difference(*many, num_resamples=1500).n == 2001


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([float("nan")], [1.0])])
def test_paired_difference_refuses_bad_lists(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="paired values"):
        paired_difference(a, b)


def test_without_clusters_each_pair_is_its_own() -> None:
    a, b = [1.0, 0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0, 0.0]
    assert paired_difference(a, b, seed=3) == paired_difference(a, b, ["v", "w", "x", "y", "z"], seed=3)


def test_copies_of_an_item_in_its_cluster_do_not_narrow_the_interval() -> None:
    """The reference is the interval of one item per cluster: ten copies know nothing more."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, size=80).astype(float)
    b = rng.integers(0, 2, size=80).astype(float)
    alone = paired_difference(a.tolist(), b.tolist())
    clusters = [str(item) for item in range(80) for _ in range(10)]
    copied = paired_difference(np.repeat(a, 10).tolist(), np.repeat(b, 10).tolist(), clusters)
    assert (copied.mean, copied.low, copied.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert copied.n == 800


def test_unequal_clusters_against_resampling_by_hand() -> None:
    """All 3^3 resamples of clusters of 1, 2 and 3 pairs, each as likely: the exact percentile points."""
    differences = {"p": [1.0], "q": [0.0, -1.0], "r": [1.0, 1.0, 0.0]}
    clusters = [name for name, values in differences.items() for _ in values]
    b = [value for values in differences.values() for value in values]
    means = [
        sum(sum(differences[name]) for name in drawn) / sum(len(differences[name]) for name in drawn)
        for drawn in itertools.product(differences, repeat=3)
    ]
    found = paired_difference([0.0] * 6, b, clusters, num_resamples=50_000)
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert found.mean == pytest.approx(2 / 6)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_of_clustered_flags_covers_the_truth() -> None:
    """Pictures shift both ways of answering alike and each by itself. 95% is asked of 400 experiments, whose
    own error is 1.1 points; taken for independent, the items miss far more often."""
    rng = np.random.default_rng(11)
    covered = {"clustered": 0, "independent": 0}
    num_pictures, questions, runs = 60, 8, 400
    clusters = [str(picture) for picture in range(num_pictures) for _ in range(questions)]
    for run in range(runs):
        ability_a = np.repeat(rng.choice([0.2, 0.6], size=num_pictures), questions)
        ability_b = np.repeat(rng.choice([0.3, 0.7], size=num_pictures), questions)
        a = (rng.random(len(clusters)) < ability_a).astype(float).tolist()
        b = (rng.random(len(clusters)) < ability_b).astype(float).tolist()
        for name, groups in (("clustered", clusters), ("independent", None)):
            found = paired_difference(a, b, groups, seed=run, num_resamples=400)
            covered[name] += found.low <= 0.1 <= found.high
    assert 0.91 <= covered["clustered"] / runs <= 0.98
    assert covered["independent"] / runs < 0.88


def test_columns_are_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, size=(2, 50, 3)).astype(float)
    clusters = [str(item // 4) for item in range(50)]
    present = np.ones((50, 3), dtype=bool)
    together = paired_differences(a, b, present, clusters, seed=2)
    alone = [paired_difference(a[:, k].tolist(), b[:, k].tolist(), clusters, seed=2) for k in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert (one.mean, one.low, one.high, one.n) == pytest.approx(
            (other.mean, other.low, other.high, other.n)
        )


def test_items_that_are_not_there_do_not_count() -> None:
    a, b = np.zeros((6, 1)), np.ones((6, 1))
    b[4:] = 0.0
    present = np.asarray([[True]] * 4 + [[False]] * 2)
    (found,) = paired_differences(a, b, present, list("uvwxyz"))
    assert (found.mean, found.n) == (1.0, 4)


def test_equal_answers_are_not_known_to_be_equal_for_ever() -> None:
    found = paired_difference([1.0] * 40, [1.0] * 40)
    assert found.mean == 0
    assert (-found.low, found.high) == pytest.approx((wilson(0, 40).high,) * 2)
    always = paired_difference([0.0] * 40, [1.0] * 40)
    assert (always.mean, always.high) == (1.0, 1.0) and 0.9 < always.low < 1


def flags_of(only_a: int, only_b: int, both: int = 3) -> tuple[list[bool], list[bool]]:
    a = [True] * only_a + [False] * only_b + [True] * both
    b = [False] * only_a + [True] * only_b + [True] * both
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 9), (5, 5), (0, 6), (12, 3), (30, 44)])
def test_mcnemar_is_twice_the_binomial_tail(only_a: int, only_b: int) -> None:
    n, small = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(small + 1)) / 2**n
    assert mcnemar(*flags_of(only_a, only_b)) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_does_not_look_at_pairs_that_agree() -> None:
    assert mcnemar(*flags_of(2, 9, both=0)) == mcnemar(*flags_of(2, 9, both=500))
    assert mcnemar([True, False], [True, False]) == 1.0


def test_mcnemar_with_single_clusters_is_mcnemar() -> None:
    a, b = flags_of(4, 13)
    assert mcnemar(a, b, [str(item) for item in range(len(a))]) == mcnemar(a, b)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("pqrst")), min_size=6, max_size=24))
def test_with_clusters_it_is_the_share_of_sign_flips_as_far_out(
    rows: list[tuple[bool, bool, str]],
) -> None:
    """Brute force over all exchanges of whole clusters."""
    a, b, clusters = ([row[column] for row in rows] for column in range(3))
    sums = Counter({name: 0 for name in clusters})
    for one, other, name in rows:
        sums[name] += other - one
    observed = abs(sum(sums.values()))
    flips = list(itertools.product((-1, 1), repeat=len(sums)))
    far = sum(
        abs(sum(sign * total for sign, total in zip(flip, sums.values(), strict=True))) >= observed
        for flip in flips
    )
    assert mcnemar(a, b, clusters) == pytest.approx(far / len(flips))


def test_a_true_null_of_clustered_items_is_rejected_as_often_as_promised() -> None:
    """Items of a picture go together: the test over pictures keeps its 5%, the one over items does not."""
    rng = np.random.default_rng(5)
    clusters = [str(picture) for picture in range(40) for _ in range(6)]
    rejected = {"clustered": 0, "independent": 0}
    for _ in range(300):
        better = np.repeat(rng.choice([0.1, 0.9], size=40), 6)
        a = rng.random(240) < better
        b = rng.random(240) < np.repeat(rng.choice([0.1, 0.9], size=40), 6)
        rejected["clustered"] += mcnemar(a.tolist(), b.tolist(), clusters) <= 0.05
        rejected["independent"] += mcnemar(a.tolist(), b.tolist()) <= 0.05
    assert rejected["clustered"] / 300 <= 0.075
    assert rejected["independent"] / 300 > 0.2


def test_discordance_counts_both_sides() -> None:
    assert discordance(*flags_of(2, 3, both=5)) == 0.5


@pytest.mark.parametrize(("a", "b", "says"), [([0.5], [1.0], "0 or 1"), ([1.0, 0.0], [1.0], "one length")])
def test_mcnemar_refuses_what_is_not_right_or_wrong(a: list[float], b: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mcnemar(a, b)
