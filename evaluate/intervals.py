"""Intervals beside every figure: Wilson's for a rate, Newcombe's for a difference of rates.

Intervals of clustered items and of pairs: prismcap.evaluate.statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_ITEMS = 200  # a rate on fewer items is flagged: its interval is wider than +-7 points
Z_95 = 1.959963984540054  # the 97.5% point of the standard normal


@dataclass(frozen=True)
class Rate:
    """A share of n items with its 95% interval; all three on the 0..1 scale."""

    rate: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | bool]:
        """{rate, low, high, n}, and `few_items: true` when n is below MIN_ITEMS."""
        values: dict[str, float | int | bool] = {
            "rate": round(self.rate, 6),
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "n": self.n,
        }
        if self.n < MIN_ITEMS:
            values["few_items"] = True
        return values


def wilson(num_right: float, n: int, z: float = Z_95) -> Rate:
    """The Wilson score interval (Wilson, JASA 1927): stays inside 0..1 and is honest at 0% and 100%.

    A num_right that is no whole number is a mean of values in 0..1, times n.
    Raises ValueError when n is not positive or num_right lies outside 0..n.
    """
    if n < 1 or not 0 <= num_right <= n:
        raise ValueError(f"a rate needs 0 <= num_right <= n and n >= 1, got num_right={num_right}, n={n}")
    share = num_right / n
    z2 = z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # rounding must not push the bounds past the observed 0 or 1
    low = 0.0 if num_right == 0 else centre - half
    high = 1.0 if num_right == n else centre + half
    return Rate(share, low, high, n)


def rate_of(flags: Sequence[bool]) -> Rate:
    """The share of true flags with its Wilson interval."""
    return wilson(sum(flags), len(flags))


@dataclass(frozen=True)
class Mean:
    """The mean of n values in their own unit, with its 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | bool]:
        """{mean, low, high, n}, and `few_items: true` when n is below MIN_ITEMS."""
        values: dict[str, float | int | bool] = {
            "mean": round(self.mean, 6),
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "n": self.n,
        }
        if self.n < MIN_ITEMS:
            values["few_items"] = True
        return values


@dataclass(frozen=True)
class MeanDifference(Mean):
    """Mean of b - a over n pairs, or the difference of two rates, with its 95% interval."""


def difference_of_rates(first: Mapping[str, Any], second: Mapping[str, Any]) -> MeanDifference:
    """second - first with its 95% interval, from two Wilson intervals as `Rate.as_dict` writes them.

    Newcombe's hybrid score interval (Statistics in Medicine 1998, method 10), for independent items; of the
    same items it is too wide, since they agree more often. `n` is that of the smaller rate.
    """
    return _difference(first, second, "rate")


def difference_of_means(first: Mapping[str, Any], second: Mapping[str, Any]) -> MeanDifference:
    """As difference_of_rates, of two values as `Mean.as_dict` writes them: the bounds of any two intervals
    make those of the difference in the same way (Zou and Donner, Statistics in Medicine 2008)."""
    return _difference(first, second, "mean")


def _difference(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> MeanDifference:
    difference = second[key] - first[key]
    below = math.hypot(second[key] - second["low"], first["high"] - first[key])
    above = math.hypot(second["high"] - second[key], first[key] - first["low"])
    return MeanDifference(difference, difference - below, difference + above, min(first["n"], second["n"]))
