"""Several comparisons at once: Holm's correction within a family that has a name."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: below alpha, the chance of any false finding is below alpha.

    Step-down, valid under any dependence (Holm, Scandinavian Journal of Statistics 1979). Raises ValueError
    on a value outside 0..1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError("p-values must lie in 0..1")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted


def holm_by_family(families: Sequence[str], p_values: Sequence[float]) -> list[float]:
    """holm within each family: comparisons that are read together, and among which the best is picked.

    Raises ValueError as holm, and on lists of different length.
    """
    if len(families) != len(p_values):
        raise ValueError(f"{len(p_values)} p-values need as many family names, got {len(families)}")
    adjusted = [0.0] * len(p_values)
    for name in set(families):
        members = [position for position, family in enumerate(families) if family == name]
        for position, p in zip(members, holm([p_values[at] for at in members]), strict=True):
            adjusted[position] = p
    return adjusted
