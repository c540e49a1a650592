"""How far raters agree: people with each other, a judge with itself or with people.

A unit is what was rated: its ratings, in any order and by any number of raters; one rating pairs with nothing
and counts for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any, Literal

Level = Literal["nominal", "ordinal", "interval"]


def raw_agreement(units: Sequence[Sequence[object]]) -> float | None:
    """The share of pairs of ratings of one unit that are equal; None without a pair."""
    pairs = [one == other for unit in units for one, other in combinations(unit, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def krippendorff_alpha(units: Sequence[Sequence[float]], level: Level) -> float | None:
    """1 where raters agree wholly, 0 where as by chance, below 0 where less than by chance.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): alpha = 1 - D_o / D_e, each rating
    weighing the same, whoever gave it and however many are missing. level: of the scale of the ranks.
    None where nothing pairs or all ratings are equal: then there is nothing to agree about.
    """
    paired = [unit for unit in units if len(unit) > 1]
    counts = Counter(rating for unit in paired for rating in unit)
    total = sum(counts.values())
    expected = sum(
        counts[one] * counts[other] * _distance(one, other, counts, level)
        for one, other in permutations(counts, 2)
    )
    if not expected:
        return None
    observed = sum(
        _distance(one, other, counts, level) / (len(unit) - 1)
        for unit in paired
        for one, other in permutations(unit, 2)
    )
    return 1 - (total - 1) * observed / expected


def _distance(one: float, other: float, counts: Counter[float], level: Level) -> float:
    """Squared; ordinal: by how many ratings lie between."""
    if level == "nominal":
        return float(one != other)
    if level == "interval":
        return (one - other) ** 2
    low, high = min(one, other), max(one, other)
    between = sum(count for rating, count in counts.items() if low <= rating <= high)
    return (between - (counts[one] + counts[other]) / 2) ** 2 if one != other else 0.0


def agreement(
    labels: Sequence[Sequence[str]], ranks: Sequence[Sequence[float]], level: Level
) -> dict[str, Any]:
    """{raw, alpha, level, units}: raw of the labels, alpha of the ranks; units: with two ratings or more."""
    raw, alpha = raw_agreement(labels), krippendorff_alpha(ranks, level)
    return {
        "raw": None if raw is None else round(raw, 6),
        "alpha": None if alpha is None else round(alpha, 6),
        "level": level,
        "units": sum(len(unit) > 1 for unit in labels),
    }
