"""Intervals and differences of figures against a bootstrap written out, item by item and draw by draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from prismcap.evaluate.intervals import Mean, Rate, wilson
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure
from prismcap.evaluate.metrics._interval import FigureIntervals, clusters_of, corrected
from prismcap.evaluate.statistics.clustered import clustered_rate
from prismcap.evaluate.statistics.multiple import holm
from prismcap.evaluate.statistics.paired import exchange_test, mcnemar, paired_difference
from prismcap.evaluate.statistics.power import minimum_detectable_flags
from prismcap.evaluate.statistics.resample import Resamples

DRAWS = 2000
Floats = NDArray[np.float64]
CLUSTERS = [f"picture {number // 3}" for number in range(60)]  # three items each


def f1(sums: Floats) -> Floats:
    """True positives, false positives, false negatives."""
    found: Floats = 2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2])
    return found


def counts(seed: int, rate: float = 0.7) -> Floats:
    return np.random.default_rng(seed).binomial(4, [rate, 0.2, 0.3], size=(len(CLUSTERS), 3)).astype(float)


def of_sums(sums: Floats, **options: object) -> ItemFigure:
    return ItemFigure("f1", f1(sums + 1e-9).tolist(), "", sums=sums, combine=f1, **options)  # type: ignore[arg-type]


def drawn(num_clusters: int, seed: int) -> list[list[int]]:
    """The clusters of every draw, in the order in which Resamples draws them."""
    rng = np.random.default_rng(seed)
    draws: list[list[int]] = rng.integers(0, num_clusters, size=(DRAWS, num_clusters)).tolist()
    return draws


def loop(statistic: Callable[[list[int]], float], clusters: Sequence[str], seed: int) -> tuple[float, float]:
    """The percentile interval of a statistic of item positions, one resample at a time."""
    names = list(dict.fromkeys(clusters))
    members = [[at for at, cluster in enumerate(clusters) if cluster == name] for name in names]
    found = []
    for draw in drawn(len(names), seed):
        found.append(statistic([at for number in draw for at in members[number]]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def test_a_combination_is_resampled_as_a_loop_over_items_would() -> None:
    sums = counts(1)

    def statistic(positions: list[int]) -> float:
        return float(f1(sum(sums[at] for at in positions)))  # type: ignore[arg-type]

    found = FigureIntervals(CLUSTERS, 5, DRAWS).value(of_sums(sums))
    assert isinstance(found, Rate) and found.n == len(CLUSTERS)
    assert found.rate == pytest.approx(float(f1(sums.sum(axis=0))))
    assert (found.low, found.high) == pytest.approx(loop(statistic, CLUSTERS, 5))
    # single items in place of clusters: another interval, so the clusters do matter
    alone = FigureIntervals([str(at) for at in range(60)], 5, DRAWS).value(of_sums(sums))
    assert isinstance(alone, Rate) and alone.low != pytest.approx(found.low, abs=1e-6)


def test_a_mean_leaves_out_the_items_without_a_value() -> None:
    rng = np.random.default_rng(2)
    values = [None if at % 4 == 0 else float(value) for at, value in enumerate(rng.normal(12, 4, size=60))]
    figure = ItemFigure("words", values, "", unit="words")

    def statistic(positions: list[int]) -> float:
        there = [value for at in positions if (value := values[at]) is not None]
        return sum(there) / len(there)

    found = FigureIntervals(CLUSTERS, 3, DRAWS).value(figure)
    assert isinstance(found, Mean) and found.n == 45
    assert found.mean == pytest.approx(statistic(list(range(60))))
    assert (found.low, found.high) == pytest.approx(loop(statistic, CLUSTERS, 3))


def test_flags_have_the_interval_that_every_rate_has() -> None:
    single = ItemFigure("right", [1.0] * 40 + [0.0] * 10 + [None], "")
    assert FigureIntervals([str(at) for at in range(51)]).value(single) == wilson(40, 50)
    flags = [float(at % 5 != 0) for at in range(60)]
    found = FigureIntervals(CLUSTERS, seed=4).value(ItemFigure("right", flags, ""))
    assert found == clustered_rate(flags, CLUSTERS, seed=4)


def test_without_spread_the_interval_is_wilsons_with_as_many_trials_as_clusters() -> None:
    score = wilson(20, 20)
    right = FigureIntervals(CLUSTERS).value(ItemFigure("right", [1.0] * 60, ""))
    assert right == Rate(1.0, score.low, score.high, 60)
    perfect = np.tile([1.0, 0, 0], (60, 1))
    assert FigureIntervals(CLUSTERS).value(of_sums(perfect)) == right
    # in words nothing is known of a spread that is not there
    same = FigureIntervals(CLUSTERS).value(ItemFigure("words", [7.0] * 60, "", unit="words"))
    assert same == Mean(7.0, 7.0, 7.0, 60)


def test_a_figure_that_cannot_be_computed_has_no_value() -> None:
    assert FigureIntervals(CLUSTERS).value(ItemFigure("precision", [None] * 60, "")) is None
    empty = ItemFigure("f1", [0.0] * 60, "", sums=np.zeros((60, 3)), combine=f1)
    assert FigureIntervals(CLUSTERS).value(empty) is None
    assert FigureIntervals(CLUSTERS).difference(empty, of_sums(counts(1))) is None
    # one item alone tells: the resamples without it cannot be computed, and are left out
    lonely = np.zeros((60, 3))
    lonely[0] = [2, 1, 0]
    found = FigureIntervals(CLUSTERS).value(of_sums(lonely))
    assert isinstance(found, Rate) and 0 < found.low <= 0.8 <= found.high <= 1


def test_a_share_may_be_a_cosine() -> None:
    values = np.random.default_rng(0).normal(-0.1, 0.2, size=60).tolist()
    found = FigureIntervals(CLUSTERS).value(ItemFigure("cosine", values, ""))
    assert isinstance(found, Rate) and found.low < found.rate < found.high and found.low < 0


def test_a_difference_of_combinations_is_resampled_jointly() -> None:
    a = counts(1)
    b = np.maximum(a + np.random.default_rng(9).integers(-1, 2, size=a.shape) * [1, 0, 0], 0)

    def statistic(positions: list[int]) -> float:
        of_a, of_b = (f1(sum(side[at] for at in positions)) for side in (a, b))  # type: ignore[arg-type]
        return float(of_b - of_a)

    intervals = FigureIntervals(CLUSTERS, 5, DRAWS)
    found = intervals.difference(of_sums(a), of_sums(b))
    assert found is not None
    low, high = loop(statistic, CLUSTERS, 5)
    assert found.difference.mean == pytest.approx(statistic(list(range(60))))
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))
    # the same shuffled against each other, as if unpaired: much wider
    other = intervals.difference(of_sums(a), of_sums(np.roll(b, 30, axis=0)))
    assert other is not None and other.difference.high - other.difference.low > 2 * (high - low)
    assert found.minimum_detectable == pytest.approx(2.8016 * (high - low) / 3.92, rel=0.05)


def test_a_difference_of_means_is_the_paired_one() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(12, 4, size=60)
    b = a + rng.normal(0.5, 1, size=60)
    sides = [ItemFigure("words", side.tolist(), "", unit="words") for side in (a, b)]
    found = FigureIntervals(CLUSTERS, 3, DRAWS).difference(*sides)
    assert found is not None
    expected = paired_difference(a.tolist(), b.tolist(), CLUSTERS, 3, DRAWS)
    assert (found.difference.mean, found.difference.low, found.difference.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    # an item that one side has no value for is in neither
    holes = ItemFigure("words", [None, *a[1:].tolist()], "", unit="words")
    left = FigureIntervals(CLUSTERS, 3, DRAWS).difference(holes, sides[1])
    assert left is not None and left.difference.n == 59
    assert left.difference.mean == pytest.approx(float((b - a)[1:].mean()))


def test_a_difference_of_flags_has_the_exact_test() -> None:
    pytest.importorskip("scipy")
    rng = np.random.default_rng(6)
    a, b = (rng.random(60) < share for share in (0.5, 0.8))
    sides = [ItemFigure("right", side.astype(float).tolist(), "") for side in (a, b)]
    lists = [side.astype(float).tolist() for side in (a, b)]
    alone = [str(at) for at in range(60)]
    for clusters in (CLUSTERS, alone):
        found = FigureIntervals(clusters).difference(*sides)
        assert found is not None and found.p == mcnemar(*lists, clusters)
    assert found is not None
    share = float((a != b).mean())
    assert found.minimum_detectable == pytest.approx(minimum_detectable_flags(60, share), rel=0.3)
    equal = FigureIntervals(alone).difference(sides[0], sides[0])
    assert equal is not None and equal.p == 1.0
    assert equal.difference.low == -wilson(0, 60).high, "not a width of zero"


def test_exchanging_sides_agrees_with_all_exchanges_there_are() -> None:
    rng = np.random.default_rng(4)
    a = rng.binomial(5, [0.5, 0.3, 0.3], size=(9, 3)).astype(float)
    b = rng.binomial(5, [0.8, 0.3, 0.3], size=(9, 3)).astype(float)
    observed = abs(float(f1(b.sum(axis=0)) - f1(a.sum(axis=0))))
    large = 0
    for sides in itertools.product((False, True), repeat=9):
        crossed = np.asarray(sides)[:, None]
        one, other = np.where(crossed, b, a), np.where(crossed, a, b)
        large += abs(float(f1(other.sum(axis=0)) - f1(one.sum(axis=0)))) >= observed - 1e-12
    exact = large / 2**9
    assert 0.005 < exact < 0.5, "the example tells"
    assert exchange_test(a, b, f1, seed=1) == pytest.approx(exact, abs=0.015)
    assert exchange_test(a, b, f1, seed=1) == exchange_test(b, a, f1, seed=1)
    assert exchange_test(a, a, f1) == 1.0
    apart = np.repeat([[5.0, 0, 0]], 30, axis=0)
    assert exchange_test(np.repeat([[0.0, 5, 5]], 30, axis=0), apart, f1, num_exchanges=999) == 1 / 1000


def test_all_figures_of_the_same_items_are_of_the_same_draws() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(20, 2))
    resamples = Resamples(20, seed=7, num_resamples=300)
    sums = resamples.sums(values)
    expected = [values[draw].sum(axis=0) for draw in np.random.default_rng(7).integers(0, 20, size=(300, 20))]
    assert np.allclose(sums, expected)
    assert np.allclose(resamples.ratios(values[:, :1], values[:, 1:]), sums[:, :1] / sums[:, 1:])


def test_differences_are_corrected_as_one_family() -> None:
    intervals = FigureIntervals(CLUSTERS)
    pairs = {f"f{seed}": (of_sums(counts(seed)), of_sums(counts(seed + 50, 0.8))) for seed in range(4)}
    found = {name: intervals.difference(*pair) for name, pair in pairs.items()}
    rows = corrected({name: of for name, of in found.items() if of is not None})
    assert [row["p_holm"] for row in rows.values()] == holm([float(row["p"]) for row in rows.values()])
    assert set(rows["f0"]) == {
        *("mean", "low", "high", "n", "few_items"),
        *("p", "p_holm", "minimum_detectable"),
    }
    assert corrected({}) == {}


def test_items_without_a_cluster_are_their_own() -> None:
    items = [CaptionItem("a", "x"), CaptionItem("b", "x", cluster="p"), CaptionItem("c", "x", cluster="p")]
    assert clusters_of(items) == ["a", "p", "p"]
