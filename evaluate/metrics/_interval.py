"""Intervals of figures, and of their differences: all figures of the same items from the same resamples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismcap.evaluate.intervals import Mean, MeanDifference, Rate
from prismcap.evaluate.metrics._contract import CaptionItem, Floats, ItemFigure
from prismcap.evaluate.metrics._shares import share
from prismcap.evaluate.statistics.clustered import ClusteredItems, effective_n, resampled_rate
from prismcap.evaluate.statistics.multiple import holm
from prismcap.evaluate.statistics.paired import discordance, exchange_test, mcnemar, widened
from prismcap.evaluate.statistics.power import minimum_detectable, minimum_detectable_flags
from prismcap.evaluate.statistics.resample import NUM_RESAMPLES, percentile_interval

Present = NDArray[np.bool_]
Combine = Callable[[Floats], Floats]


@dataclass(frozen=True)
class FigureDifference:
    """b - a on the same items.

    p: of "it does not matter which is which", clusters exchanged whole: exact for flags (McNemar's test where
    clusters are single); else by every exchange where at most paired.MOST_EXACT clusters differ, by random
    ones (10,000) beyond. minimum_detectable: the difference that a test of this size finds with 80% power, in
    the figure's unit. Both are uncorrected.
    """

    difference: MeanDifference
    p: float
    minimum_detectable: float


def clusters_of(items: Sequence[CaptionItem]) -> list[str]:
    """The cluster of every item: its picture, or the item itself."""
    return [item.cluster or item.id for item in items]


class FigureIntervals:
    """One list of items by their clusters: intervals of any figures of theirs."""

    def __init__(self, clusters: Sequence[str], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> None:
        self._clusters = list(clusters)
        self._seed = seed
        self._items = ClusteredItems(clusters, seed, num_resamples)

    def value(self, figure: ItemFigure) -> Rate | Mean | None:
        """The figure with its 95% interval; a Rate where its unit is a share, else a Mean.

        n: the items to which it applies. None where it applies to none, or cannot be computed (a precision
        without a positive). The percentile interval of resampled clusters; of shares also as
        clustered.clustered_rate: Wilson's for flags of single clusters, and where no resample varies.
        """
        values, present = _column(figure)
        if not present.any():
            return None
        if figure.sums is None and _is_share(figure, values[present]):
            return self._items.rates(values[:, None], present[:, None])[0][0]
        value, resampled = self._combined(*_statistics(figure, values, present))
        if not np.isfinite(value) or not len(resampled):
            return None
        n = int(present.sum())
        if _is_share(figure, np.asarray([value])):
            return resampled_rate(value, resampled, n, self._items.num_clusters_of(present))
        low, high = _bounds(resampled)
        return Rate(value, low, high, n) if figure.unit == "share" else Mean(value, low, high, n)

    def difference(self, a: ItemFigure, b: ItemFigure) -> FigureDifference | None:
        """b - a, two of the same figure on these items, paired: one draw resamples both.

        A mean is over the items to which both apply; a combination over all, each side's with its own. n: how
        many these are. None where one side cannot be computed. Raises MissingExtraError without scipy where
        the values are flags of single clusters.
        """
        values_a, in_a = _column(a)
        values_b, in_b = _column(b)
        of_sums = a.sums is not None
        present = in_a | in_b if of_sums else in_a & in_b
        if not present.any():
            return None
        sums_a, combine = _statistics(a, values_a, present)
        sums_b, _ = _statistics(b, values_b, present)
        width = sums_a.shape[1]
        both = np.column_stack([sums_a, sums_b])
        mean, resampled = self._combined(
            both, lambda sums: combine(sums[..., width:]) - combine(sums[..., :width])
        )
        if not np.isfinite(mean) or not len(resampled):
            return None
        low, high = _bounds(resampled)
        with np.errstate(divide="ignore", invalid="ignore"):
            sides = combine(np.stack([sums_a.sum(axis=0), sums_b.sum(axis=0)]))
        bounded = values_a[present], values_b[present]
        if all(_is_share(a, of) for of in ((sides,) if of_sums else bounded)):
            low, high = widened(mean, low, high, self._items.num_clusters_of(present))
        difference = MeanDifference(mean, low, high, int(present.sum()))
        if not of_sums and all(np.isin(of, (0, 1)).all() for of in bounded):
            p, detectable = self._of_flags(*bounded, present)
            return FigureDifference(difference, p, detectable)
        p = exchange_test(self._items.sums(sums_a), self._items.sums(sums_b), combine, self._seed)
        # the spread of resampled differences is the standard error of the one observed
        detectable = minimum_detectable(1.0, float(resampled.std()))
        return FigureDifference(difference, p, detectable)

    def _combined(self, sums: Floats, combine: Combine) -> tuple[float, Floats]:
        """ClusteredItems.combined, without the resamples that cannot be computed."""
        value, resampled = self._items.combined(sums, combine)
        return value, resampled[np.isfinite(resampled)]

    def _of_flags(self, a: Floats, b: Floats, present: Present) -> tuple[float, float]:
        """(p, minimum detectable) of the flags that are present."""
        one, other = a.tolist(), b.tolist()
        clusters = [cluster for cluster, here in zip(self._clusters, present.tolist(), strict=True) if here]
        informative = min(float(len(one)), effective_n((b - a).tolist(), clusters))
        detectable = minimum_detectable_flags(informative, discordance(one, other))
        return mcnemar(one, other, clusters), detectable


def corrected(differences: dict[str, FigureDifference]) -> dict[str, dict[str, float | int | bool]]:
    """By figure {mean, low, high, n, p, p_holm, minimum_detectable}; the family of Holm's correction is all
    that are given."""
    p_holm = holm([found.p for found in differences.values()])
    return {
        name: {
            **found.difference.as_dict(),
            "p": found.p,
            "p_holm": adjusted,
            "minimum_detectable": round(found.minimum_detectable, 6),
        }
        for (name, found), adjusted in zip(differences.items(), p_holm, strict=True)
    }


def _column(figure: ItemFigure) -> tuple[Floats, Present]:
    """(values, 0 where there is none; which are there)."""
    present = np.asarray([value is not None for value in figure.values], dtype=bool)
    return np.asarray([value or 0.0 for value in figure.values], dtype=np.float64), present


def _statistics(figure: ItemFigure, values: Floats, present: Present) -> tuple[Floats, Combine]:
    """What adds up over the items, and what makes the figure of it; of a mean over the items present."""
    if figure.sums is None:
        return np.column_stack([np.where(present, values, 0.0), present.astype(np.float64)]), share
    assert figure.combine is not None and len(figure.sums) == len(values)
    return np.asarray(figure.sums, dtype=np.float64), figure.combine


def _is_share(figure: ItemFigure, values: Floats) -> bool:
    """Whether the values are what the unit says: a share may also be a cosine, which can be negative."""
    return figure.unit == "share" and bool(((values >= 0) & (values <= 1)).all())


def _bounds(resampled: Floats) -> tuple[float, float]:
    low, high = percentile_interval(resampled[:, None])
    return float(low[0]), float(high[0])
