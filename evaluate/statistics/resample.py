"""The bootstrap over clusters: whole clusters are drawn with replacement, and a ratio of sums is taken.

Source: Efron, Annals of Statistics 1979; resampling of clusters instead of items: Davison and Hinkley,
Bootstrap Methods and their Application (1997), section 3.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
_KEPT_COUNTS = 100_000_000  # bytes
_DRAWS_AT_ONCE = 1_000_000  # 10,000 resamples of 10,000 clusters would take 800 MB at once

Floats = NDArray[np.float64]


def cluster_index(clusters: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """(number of its cluster for every item, how many clusters), in order of first appearance."""
    numbers: dict[str, int] = {}
    index = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    return np.asarray(index, dtype=np.int64), len(numbers)


def sums_by_cluster(values: Floats, index: NDArray[np.int64], num_clusters: int) -> Floats:
    """[items, columns] -> [clusters, columns]."""
    sums = np.zeros((num_clusters, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


class Resamples:
    """Draws of clusters, the same for every figure that is asked of them."""

    def __init__(self, num_clusters: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> None:
        self._num_clusters = num_clusters
        self._seed = seed
        self._num_resamples = num_resamples
        self._kept: list[NDArray[np.uint8]] = []

    def ratios(self, numerators: Floats, denominators: Floats) -> Floats:
        """[clusters, columns] sums -> [resamples, columns]: in each resample, sum of numerators over sum of
        denominators of the clusters that were drawn. All columns see the same draws, so that differences and
        means of columns are those of one resample. NaN where a resample holds nothing of a column.
        """

        def ratio(weights: Floats) -> Floats:
            with np.errstate(invalid="ignore"):
                return (weights @ numerators) / (weights @ denominators)

        return self._of_each(ratio, numerators.shape[1])

    def sums(self, by_cluster: Floats) -> Floats:
        """[clusters, columns] -> [resamples, columns]: sums over the clusters that were drawn, from the draws
        that `ratios` sees."""
        return self._of_each(lambda weights: weights @ by_cluster, by_cluster.shape[1])

    def _of_each(self, what: Callable[[Floats], Floats], num_columns: int) -> Floats:
        """`what` of the weights [some resamples, clusters], put together to [resamples, columns]."""
        found = np.empty((self._num_resamples, num_columns))
        start = 0
        for counts in self._counts():
            found[start : start + len(counts)] = what(counts.astype(np.float64))
            start += len(counts)
        return found

    def _counts(self) -> Iterator[NDArray[np.uint8]]:
        """How often each cluster was drawn, [some resamples, clusters]: drawn once and kept if they are few,
        else drawn anew, and alike, each time."""
        if self._kept:
            yield from self._kept
            return
        keep = self._num_resamples * self._num_clusters <= _KEPT_COUNTS
        rng = np.random.default_rng(self._seed)
        chunk = max(1, _DRAWS_AT_ONCE // self._num_clusters)
        drawn = []
        for start in range(0, self._num_resamples, chunk):
            size = min(chunk, self._num_resamples - start)
            of = rng.integers(0, self._num_clusters, size=(size, self._num_clusters))
            of += np.arange(size)[:, None] * self._num_clusters
            # a count is about 1: one above 255 takes more than 255 clusters, and never happens
            counts = np.bincount(of.ravel(), minlength=size * self._num_clusters).astype(np.uint8)
            counts = counts.reshape(size, self._num_clusters)
            if keep:
                drawn.append(counts)
            yield counts
        self._kept = drawn


def percentile_interval(resampled: Floats) -> tuple[Floats, Floats]:
    """The 2.5% and 97.5% points of each column; resamples that hold nothing of a column are left out."""
    quantile = np.nanquantile if np.isnan(resampled).any() else np.quantile  # the first is slow
    low, high = quantile(resampled, [0.025, 0.975], axis=0)
    return low, high
