"""The bootstrap over clusters: whole clusters are drawn with replacement, and a ratio of sums is taken.

Source: Efron, Annals of Statistics 1979; resampling of clusters instead of items: Davison and Hinkley,
Bootstrap Methods and their Application (1997), section 3.8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
_DRAWS_AT_ONCE = 2_000_000  # 10,000 resamples of 10,000 clusters would take 800 MB at once

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


def resampled_ratios(
    numerators: Floats, denominators: Floats, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Floats:
    """[clusters, columns] sums -> [resamples, columns]: in each resample, sum of numerators over sum of
    denominators of the clusters that were drawn. All columns see the same draws, so that differences and
    means of columns are those of one resample. NaN where a resample holds nothing of a column.
    """
    num_clusters, num_columns = numerators.shape
    rng = np.random.default_rng(seed)
    chunk = max(1, _DRAWS_AT_ONCE // num_clusters)
    ratios = np.empty((num_resamples, num_columns))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        drawn = rng.integers(0, num_clusters, size=(size, num_clusters))
        drawn += np.arange(size)[:, None] * num_clusters
        counts = np.bincount(drawn.ravel(), minlength=size * num_clusters).astype(np.float64)
        counts = counts.reshape(size, num_clusters)
        with np.errstate(invalid="ignore"):
            ratios[start : start + size] = (counts @ numerators) / (counts @ denominators)
    return ratios


def percentile_interval(resampled: Floats) -> tuple[Floats, Floats]:
    """The 2.5% and 97.5% points of each column; resamples that hold nothing of a column are left out."""
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    return low, high
