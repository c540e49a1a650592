"""Rates and means of items that come in clusters (questions about one picture), with 95% intervals.

Items of one cluster are right or wrong together more often than others: an interval that takes them for
independent is too narrow. General in what is measured: a value per item and a cluster per item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prismcap.evaluate.intervals import Mean, Rate, wilson
from prismcap.evaluate.statistics.resample import (
    NUM_RESAMPLES,
    Floats,
    Resamples,
    cluster_index,
    percentile_interval,
    sums_by_cluster,
)


def clustered_rate(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Rate:
    """The mean of values in 0..1 with its 95% interval; `n` counts items.

    Flags whose clusters are all single: Wilson's interval. Else the percentile interval of the bootstrap
    over clusters. Where that shows no spread (all right, all wrong, one cluster) it would have no width:
    then Wilson's with as many trials as clusters, since no value in 0..1 varies more than a flag.
    Raises ValueError on lists of different or zero length and on values outside 0..1.
    """
    column = _column(values, clusters)
    present = np.ones(column.shape, dtype=bool)
    return ClusteredItems(clusters, seed, num_resamples).rates(column, present)[0][0]


def macro_rate(
    values: Sequence[float],
    clusters: Sequence[str],
    categories: Sequence[str],
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Rate:
    """The mean over categories of their means, each category weighing the same; `n` counts items.

    Interval and errors as clustered_rate; clusters may span categories, and are drawn whole.
    """
    column = _column(values, clusters)
    if len(categories) != len(values):
        raise ValueError(f"{len(values)} values need as many categories, got {len(categories)}")
    names = list(dict.fromkeys(categories))
    of = np.asarray(categories, dtype=object)
    present = np.stack([of == name for name in names], axis=1)
    spread = np.repeat(column, len(names), axis=1)
    items = ClusteredItems(clusters, seed, num_resamples)
    return items.rates(spread, present, {"macro": range(len(names))})[1]["macro"]


def clustered_mean(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Mean:
    """The mean of any finite values (a caption metric, a loss) with the bootstrap's 95% interval.

    With one cluster the interval has no width: nothing is known of the spread. Raises ValueError on lists
    of different or zero length and on values that are not finite.
    """
    column = _column(values, clusters, bounded=False)
    index, num_clusters = cluster_index(clusters)
    sums = sums_by_cluster(np.column_stack([column, np.ones(len(column))]), index, num_clusters)
    resampled = Resamples(num_clusters, seed, num_resamples).ratios(sums[:, :1], sums[:, 1:])
    low, high = percentile_interval(resampled)
    return Mean(float(column.mean()), float(low[0]), float(high[0]), len(column))


def effective_n(values: Sequence[float], clusters: Sequence[str]) -> float:
    """How many independent items would tell as much: n over Kish's design effect (Survey Sampling, 1965).

    The design effect is the variance of the mean with clusters over the variance without; n itself where
    values do not vary. Errors as clustered_mean.
    """
    column = _column(values, clusters, bounded=False)
    deviations = column - column.mean()
    alone = float((deviations**2).sum())
    index, num_clusters = cluster_index(clusters)
    together = float((sums_by_cluster(deviations, index, num_clusters) ** 2).sum())
    if alone <= 0 or together <= 0:
        return float(len(column))
    return len(column) * alone / together


class ClusteredItems:
    """The items of one benchmark by cluster: every figure on them comes from the same resamples."""

    def __init__(self, clusters: Sequence[str], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> None:
        self._index, self.num_clusters = cluster_index(clusters)
        self._resamples = Resamples(self.num_clusters, seed, num_resamples)

    def sums(self, values: Floats) -> Floats:
        """[items, columns] -> [clusters, columns]."""
        return sums_by_cluster(values, self._index, self.num_clusters)

    def rates(
        self,
        values: Floats,
        present: NDArray[np.bool_],
        macros: Mapping[str, Sequence[int]] | None = None,
    ) -> tuple[list[Rate], dict[str, Rate]]:
        """One rate per column of values [items, columns] over the items present in it, and by name the
        mean of several columns' rates. As clustered_rate. Raises ValueError for a column without items.
        """
        if not present.any(axis=0).all():
            raise ValueError("a rate needs at least one item")
        macros = macros or {}
        weights = present.astype(np.float64)
        numerators = self.sums(np.where(present, values, 0.0))
        denominators = self.sums(weights)
        means = numerators.sum(axis=0) / denominators.sum(axis=0)
        flags = (~present | (values == 0) | (values == 1)).all(axis=0)
        score = flags & (denominators.max(axis=0) <= 1)
        drawn = sorted({*np.flatnonzero(~score), *(at for columns in macros.values() for at in columns)})
        place = {column: position for position, column in enumerate(drawn)}
        resampled = np.empty((0, 0))
        if drawn:
            resampled = self._resamples.ratios(numerators[:, drawn], denominators[:, drawn])
        rates = []
        for column, mean in enumerate(means):
            n = int(weights[:, column].sum())
            num_clusters = int((denominators[:, column] > 0).sum())
            if score[column]:
                rates.append(wilson(int(numerators[:, column].sum()), n))
            else:
                rates.append(resampled_rate(float(mean), resampled[:, place[column]], n, num_clusters))
        return rates, {
            name: self._macro(means, present, resampled, list(columns), place)
            for name, columns in macros.items()
        }

    def combined(self, values: Floats, combine: Callable[[Floats], Floats]) -> tuple[float, Floats]:
        """(`combine` of the sums of values [items, columns] over all items, the same of each resample).

        combine: [..., columns] -> [...]. Neither is finite where it divides by nothing.
        """
        by_cluster = self.sums(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(combine(by_cluster.sum(axis=0))), combine(self._resamples.sums(by_cluster))

    def num_clusters_of(self, present: NDArray[np.bool_]) -> int:
        """How many clusters have an item that is present [items]."""
        return len(np.unique(self._index[present]))

    def _macro(
        self,
        means: Floats,
        present: NDArray[np.bool_],
        resampled: Floats,
        columns: list[int],
        place: Mapping[int, int],
    ) -> Rate:
        in_any = np.asarray(present[:, columns].any(axis=1))
        num_clusters = self.num_clusters_of(in_any)
        # a category that a resample misses leaves that resample's mean to the others
        of_resample = np.nanmean(resampled[:, [place[column] for column in columns]], axis=1)
        return resampled_rate(float(means[columns].mean()), of_resample, int(in_any.sum()), num_clusters)


def resampled_rate(mean: float, resampled: Floats, n: int, num_clusters: int) -> Rate:
    """A share with the percentile interval of its resamples, or Wilson's where they show no spread."""
    low, high = (float(bound) for bound in percentile_interval(resampled))
    if high - low < 1e-12:
        score = wilson(mean * num_clusters, num_clusters)
        low, high = score.low, score.high
    return Rate(mean, low, high, n)


def _column(values: Sequence[float], clusters: Sequence[str], bounded: bool = True) -> Floats:
    if len(values) != len(clusters) or not len(values):
        raise ValueError(
            f"a figure needs one cluster per value and at least one value, "
            f"got {len(values)} values and {len(clusters)} clusters"
        )
    column = np.asarray(values, dtype=np.float64)[:, None]
    if not np.isfinite(column).all() or (bounded and (column.min() < 0 or column.max() > 1)):
        raise ValueError(f"values must be finite{' and lie in 0..1' if bounded else ''}")
    return column
