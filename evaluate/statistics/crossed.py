"""The mean of a value that was measured on several seeds and on several items, with an interval for both.

An interval over the items of one run says what other items would show of these very weights; it does not
say what another seed would. Here both are drawn: a value per seed and item is taken as a mean, plus what the
seed, the item's cluster (its picture) and the two together add, each at random.

Source: two-way random effects without replication, by mean squares (Searle, Casella and McCulloch, Variance
Components, 1992, chapter 4). The limits of the two parts, each with its own t quantile, are added as squares
(Howe, JASA 1974). Satterthwaite's degrees of freedom for their sum (1946) would be narrower: they are taken
from the same few seeds as the variance, and where these happen to agree they pass for many; of three seeds
that matter, the interval then covers as little as 92%. As it is, it covers 93 to 97% with three
seeds or more and many items (98% of a dozen); two can agree by chance, and may leave it at 91%. Where few
seeds agree by chance, p would be as small as many items make it (of 3 seeds that vary much, 0.8% of all p
fell below 0.001 without any effect): it is held against a t test over the seeds alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prismcap.configs.errors import MissingExtraError
from prismcap.evaluate.intervals import Z_95, wilson
from prismcap.evaluate.statistics.power import ALPHA, POWER
from prismcap.evaluate.statistics.resample import Floats, cluster_index, sums_by_cluster

# crossed: every seed saw the same items; nested: each its own; the others: only these were varied
Design = Literal["crossed", "nested", "items", "seeds"]
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% t interval, in the unit of the values.

    error: its standard error; df: degrees of freedom of the error. p: two-sided, of "the mean is 0"; of
    seeds and items together it is no smaller than that of the seeds' means alone.
    minimum_detectable: the true mean that a test of this error and df finds with 80% power.
    """

    mean: float
    low: float
    high: float
    error: float
    df: float
    p: float
    minimum_detectable: float
    n_seeds: int
    n_items: int
    n_clusters: int
    design: Design


def crossed_mean(
    values: Floats, clusters: Sequence[str], bounds: tuple[float, float] | None = None
) -> Estimate:
    """The mean over values [seeds, items], the same items in every seed.

    clusters: one per item; items of a cluster are taken together. With one seed the interval is over clusters
    alone, with one cluster over seeds alone. bounds: between which the values lie; the interval stays
    inside, and values that do not vary at all, which would leave it no width, then have Wilson's bound of
    what none of the clusters showed. Raises ValueError for one seed with one cluster, and on values that
    are not finite or not [seeds, items]; MissingExtraError without scipy.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size or values.shape[1] != len(clusters):
        raise ValueError(f"values need [seeds, items] and a cluster per item, got {values.shape}")
    _check(values, bounds)
    by_cluster_SC = _by_cluster(values, clusters)
    n_seeds, n_clusters = by_cluster_SC.shape
    variance, df = _variance(by_cluster_SC)
    design: Design = "crossed"
    if n_seeds == 1 or n_clusters == 1:
        design = "items" if n_seeds == 1 else "seeds"
    counts = (n_seeds, values.shape[1], n_clusters)
    estimate = _estimate(float(values.mean()), variance, df, bounds, counts, design)
    if design != "crossed":
        return estimate
    return replace(estimate, p=max(estimate.p, _p_of_seeds(by_cluster_SC.mean(axis=1))))


def _p_of_seeds(means_S: Floats) -> float:
    """Of a t test over the seeds' means alone; 0 where they do not vary."""
    from scipy.special import stdtr

    error = math.sqrt(float(np.var(means_S, ddof=1)) / len(means_S))
    if error < _NO_SPREAD:
        return 0.0
    return float(2 * stdtr(len(means_S) - 1, -abs(float(means_S.mean())) / error))


def nested_mean(
    values: Sequence[Floats],
    clusters: Sequence[Sequence[str]],
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean over seeds, of which each has items of its own: values and clusters by seed.

    The spread of the seeds' means holds that of items as well. Where it happens to be smaller than what the
    items alone would bring, that is taken. bounds and errors as crossed_mean, and ValueError below two seeds.
    """
    if len(values) < 2 or len(values) != len(clusters):
        raise ValueError(f"two seeds or more, each with its clusters; got {len(values)} and {len(clusters)}")
    means, within = [], []
    for own, of in zip(values, clusters, strict=True):
        row = np.asarray(own, dtype=np.float64)[None, :]
        _check(row, bounds)
        by_cluster = _by_cluster(row, of)
        means.append(float(row.mean()))
        if by_cluster.shape[1] > 1:
            within.append(_variance(by_cluster))
    n_seeds = len(means)
    variance, df = float(np.var(means, ddof=1)) / n_seeds, float(n_seeds - 1)
    items = sum(of_seed for of_seed, _ in within) / n_seeds**2
    if items > variance:
        parts = sum((of_seed / n_seeds**2) ** 2 / own_df for of_seed, own_df in within)
        variance, df = items, items**2 / parts
    counts = (n_seeds, sum(len(of) for of in clusters), sum(len(set(of)) for of in clusters))
    return _estimate(float(np.mean(means)), variance, df, bounds, counts, "nested")


def _by_cluster(values_SI: Floats, clusters: Sequence[str]) -> Floats:
    """[seeds, clusters], of which the mean is that of all items: of clusters of one size their means, else
    the ratio of sums made linear around the mean, so that a large cluster weighs as its items do."""
    index, n_clusters = cluster_index(clusters)
    sums_SC = sums_by_cluster(values_SI.T, index, n_clusters).T
    sizes_C: NDArray[np.float64] = np.bincount(index, minlength=n_clusters).astype(np.float64)
    mean = values_SI.mean()
    linear: Floats = mean + (sums_SC - sizes_C * mean) * (n_clusters / len(clusters))
    return linear


def _variance(values_SC: Floats) -> tuple[float, float]:
    """(variance of the grand mean, its degrees of freedom).

    With S seeds, C clusters and mean squares MS, (MS_seed + MS_cluster - MS_residual) / (S C) has the right
    mean. It can fall below what either of the two alone brings, MS_seed / (S C) or MS_cluster / (S C); the
    larger of these is then taken.
    """
    n_seeds, n_clusters = values_SC.shape
    mean = values_SC.mean()
    of_seed_S = values_SC.mean(axis=1) - mean
    of_cluster_C = values_SC.mean(axis=0) - mean
    if n_seeds == 1 and n_clusters == 1:
        raise ValueError("an interval needs two seeds or two clusters of items, got one of each")
    if n_seeds == 1:
        return _square(of_cluster_C) / (n_clusters - 1) / n_clusters, float(n_clusters - 1)
    if n_clusters == 1:
        return _square(of_seed_S) / (n_seeds - 1) / n_seeds, float(n_seeds - 1)
    df_seed, df_cluster = n_seeds - 1, n_clusters - 1
    ms_seed = n_clusters * _square(of_seed_S) / df_seed
    ms_cluster = n_seeds * _square(of_cluster_C) / df_cluster
    rest = values_SC - mean - of_seed_S[:, None] - of_cluster_C[None, :]
    ms_rest = _square(rest) / (df_seed * df_cluster)
    total = ms_seed + ms_cluster - ms_rest
    alone, df_alone = max((ms_seed, df_seed), (ms_cluster, df_cluster))
    if total <= alone:
        return alone / values_SC.size, float(df_alone)
    fewer, more = sorted(((df_seed, ms_seed), (df_cluster, ms_cluster)))
    # the residual stays with the part of which less is known
    return total / values_SC.size, _df_of_sum(fewer[1], fewer[0], more[1] - ms_rest, more[0])


def _df_of_sum(one: float, df_one: int, other: float, df_other: int) -> float:
    """Degrees of freedom at which the t quantile of a sum of two variances reaches as far as the squares of
    their own limits together."""
    try:
        from scipy.special import stdtridf, stdtrit
    except ImportError as error:
        raise MissingExtraError("scipy", "eval", "an interval over seeds and items") from error
    share = 1 - ALPHA / 2
    squares = one * stdtrit(df_one, share) ** 2 + other * stdtrit(df_other, share) ** 2
    df = float(stdtridf(share, math.sqrt(squares / (one + other))))
    return min(max(df, float(df_one)), float(df_other))


def _square(values: Floats) -> float:
    return float((values**2).sum())


def _estimate(
    mean: float,
    variance: float,
    df: float,
    bounds: tuple[float, float] | None,
    counts: tuple[int, int, int],
    design: Design,
) -> Estimate:
    """counts: seeds, items, clusters."""
    try:
        from scipy.stats import t
    except ImportError as missing:
        raise MissingExtraError("scipy", "eval", "an interval over seeds and items") from missing
    error = math.sqrt(variance)
    if error < _NO_SPREAD and bounds is not None:
        error, df = wilson(0, counts[2]).high / Z_95, math.inf
    if error < _NO_SPREAD:
        return Estimate(mean, mean, mean, 0.0, df, float(mean == 0), 0.0, *counts, design)
    reach = float(t.ppf(1 - ALPHA / 2, df))
    low, high = mean - reach * error, mean + reach * error
    if bounds is not None:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        error=error,
        df=df,
        p=float(2 * t.sf(abs(mean) / error, df)),
        minimum_detectable=(reach + float(t.ppf(POWER, df))) * error,
        n_seeds=counts[0],
        n_items=counts[1],
        n_clusters=counts[2],
        design=design,
    )


def _check(values: Floats, bounds: tuple[float, float] | None) -> None:
    if not values.size or not np.isfinite(values).all():
        raise ValueError("values must be finite, and there must be one at least")
    if bounds is not None and (values.min() < bounds[0] - 1e-9 or values.max() > bounds[1] + 1e-9):
        raise ValueError(f"values must lie in {bounds[0]} .. {bounds[1]}")
