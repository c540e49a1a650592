"""Two ways of answering the same items: their difference with its interval, and McNemar's test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prismcap.configs.errors import MissingExtraError
from prismcap.evaluate.intervals import MeanDifference, wilson
from prismcap.evaluate.statistics.resample import (
    NUM_RESAMPLES,
    Floats,
    Resamples,
    cluster_index,
    percentile_interval,
    sums_by_cluster,
)

MOST_EXACT = 12  # clusters whose sides are exchanged in every way: 2 ** 12 ways
_EXCHANGED_AT_ONCE = 1_000_000  # sides of clusters: 8 MB as floats


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> MeanDifference:
    """The mean of b - a and its 95% percentile interval, resampling clusters of pairs (none: single pairs).

    Values are flags or any real metric per item. Pairing takes the spread between items (some pictures are
    harder) out of the interval. The same seed gives the same interval. Where all flags differ alike, no
    resample varies; the interval then reaches as far as Wilson's bound of what none of the clusters showed.
    Raises ValueError on lists of different or zero length and on values that are not finite.
    """
    one, other = _pair(a, b)
    clusters = [str(position) for position in range(len(one))] if clusters is None else clusters
    return paired_differences(one, other, np.ones(one.shape, dtype=bool), clusters, seed, num_resamples)[0]


def paired_differences(
    a: Floats,
    b: Floats,
    present: NDArray[np.bool_],
    clusters: Sequence[str],
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> list[MeanDifference]:
    """paired_difference of each column of a and b [items, columns] over the items present in it, from one
    set of resamples. Raises ValueError for a column without items."""
    if not present.any(axis=0).all() or len(clusters) != len(a):
        raise ValueError("a difference needs at least one pair, and one cluster per pair")
    index, num_clusters = cluster_index(clusters)
    differences = np.where(present, b - a, 0.0)
    sums = sums_by_cluster(differences, index, num_clusters)
    sizes = sums_by_cluster(present.astype(np.float64), index, num_clusters)
    means = sums.sum(axis=0) / sizes.sum(axis=0)
    lows, highs = percentile_interval(Resamples(num_clusters, seed, num_resamples).ratios(sums, sizes))
    flags = np.asarray((~present | (np.isin(a, (0, 1)) & np.isin(b, (0, 1)))).all(axis=0))
    found = []
    for column, mean in enumerate(means.tolist()):
        low, high = float(lows[column]), float(highs[column])
        if flags[column]:
            low, high = widened(mean, low, high, int((sizes[:, column] > 0).sum()))
        found.append(MeanDifference(mean, low, high, int(sizes[:, column].sum())))
    return found


def widened(mean: float, low: float, high: float, num_clusters: int) -> tuple[float, float]:
    """The bounds of a difference of two shares; where no resample varied, as far as Wilson's bound of what
    none of the clusters showed."""
    if high - low >= 1e-12:
        return low, high
    unseen = wilson(0, num_clusters).high
    return max(-1.0, mean - unseen), min(1.0, mean + unseen)


def discordance(a: Sequence[float], b: Sequence[float]) -> float:
    """The share of pairs in which exactly one is right. Raises ValueError as mcnemar."""
    return float(np.abs(_flag_differences(a, b)).mean())


def mcnemar(a: Sequence[float], b: Sequence[float], clusters: Sequence[str] | None = None) -> float:
    """Two-sided exact p-value of "a and b are right equally often" (McNemar, Psychometrika 1947).

    Only pairs in which one is right and the other wrong count: under the null hypothesis each falls to
    either side with probability 1/2. Where clusters repeat, sides are exchanged by whole clusters (Fisher's
    randomisation test, 1935): exact too, and McNemar's test when every cluster is one pair. 1.0 without a
    discordant pair. Raises ValueError on lists of different or zero length and on values other than 0 and 1;
    MissingExtraError without scipy.
    """
    differences = _flag_differences(a, b)
    if clusters is not None:
        index, num_clusters = cluster_index(clusters)
        if num_clusters < len(differences):
            return _sign_flip(sums_by_cluster(differences[:, None], index, num_clusters)[:, 0])
    only_b, only_a = int((differences > 0).sum()), int((differences < 0).sum())
    if only_a + only_b == 0:
        return 1.0
    try:
        from scipy.stats import binomtest
    except ImportError as error:
        raise MissingExtraError("scipy", "eval", "McNemar's test") from error
    return float(binomtest(only_b, only_a + only_b, 0.5).pvalue)


def exchange_test(
    a: Floats,
    b: Floats,
    statistic: Callable[[Floats], Floats],
    seed: int = 0,
    num_exchanges: int = NUM_RESAMPLES,
) -> float:
    """Two-sided p-value of "it does not matter which side is which" for any statistic of sums.

    a, b: sums [clusters, columns] of either side; statistic: [..., columns] -> [...]. Where up to MOST_EXACT
    clusters differ, their sides are exchanged in every way (Fisher's randomisation test, 1935): the p-value
    is the share of ways whose difference is as large as the observed. Else every draw exchanges each of them
    with probability 1/2, and the observed one counts among the draws (Noreen, Computer Intensive Methods for
    Testing Hypotheses, 1989), so it is never below 1 / (num_exchanges + 1). A draw whose statistic is not
    finite counts as one as large. The same seed gives the same value.
    """
    told = np.flatnonzero((a != b).any(axis=1))
    if not len(told):
        return 1.0
    moved, of_a, of_b = (b - a)[told], a.sum(axis=0), b.sum(axis=0)
    exact = len(told) <= MOST_EXACT
    as_large, total = (0, 0) if exact else (1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = abs(float(statistic(of_b) - statistic(of_a)))
        least = observed - 1e-9 * observed - 1e-12  # sums in another order round otherwise
        for swapped in _exchanges(len(told), seed, None if exact else num_exchanges):
            crossed = swapped.astype(np.float64) @ moved
            found = np.abs(statistic(of_b - crossed) - statistic(of_a + crossed))
            as_large += len(swapped) - int((found < least).sum())
            total += len(swapped)
    return as_large / total


def _exchanges(num_clusters: int, seed: int, num_draws: int | None) -> Iterator[NDArray[np.int8]]:
    """[draws, clusters] of 0 and 1, in parts: `num_draws` random ones, or every way."""
    if num_draws is None:
        yield (np.arange(2**num_clusters)[:, None] >> np.arange(num_clusters) & 1).astype(np.int8)
        return
    rng = np.random.default_rng(seed)
    chunk = max(1, _EXCHANGED_AT_ONCE // num_clusters)
    for start in range(0, num_draws, chunk):
        yield rng.integers(0, 2, size=(min(chunk, num_draws - start), num_clusters), dtype=np.int8)


def _sign_flip(sums: Floats) -> float:
    """P(|sum| >= the observed) when every cluster's sum (a whole number) takes either sign alike: the
    distribution of the sum is built up cluster by cluster, no sign is drawn."""
    steps = np.abs(sums).astype(int)
    reach = int(steps.sum())
    chances = np.zeros(2 * reach + 1)  # of the sums -reach..reach
    chances[reach] = 1.0
    for step in steps[steps > 0].tolist():
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2  # never past an end: sums to reach
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(round(float(sums.sum())))
    return min(1.0, float(chances[far].sum()))


def _pair(a: Sequence[float], b: Sequence[float]) -> tuple[Floats, Floats]:
    """Both as one column each."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired values need two lists of one length >= 1, got {len(a)} and {len(b)}")
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("paired values must be finite")
    return one[:, None], other[:, None]


def _flag_differences(a: Sequence[float], b: Sequence[float]) -> Floats:
    """b - a, each -1, 0 or 1."""
    one, other = _pair(a, b)
    if not (np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all()):
        raise ValueError("paired flags must be 0 or 1: McNemar's test is of right and wrong")
    return (other - one)[:, 0]
