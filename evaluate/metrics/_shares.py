"""Figures of counts that add up over items: shares, precision, recall and F1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from prismcap.evaluate.metrics._contract import Floats, ItemFigure


def share(sums: Floats) -> Floats:
    """[..., 2] = (part, whole) -> [...]; NaN where the whole is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = sums[..., 0] / sums[..., 1]
    return found


def f1(sums: Floats) -> Floats:
    """[..., 3] = (hits, said, true) -> [...], the harmonic mean of precision and recall; NaN where nothing
    was said and nothing is true."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])
    return found


def summed(
    name: str,
    sums: Floats,
    note: str,
    combine: Callable[[Floats], Floats] = share,
    higher_is_better: bool | None = True,
) -> ItemFigure:
    """A figure of sums [items, k]. An item's value is what its sums alone give, None where that is NaN."""
    values = [None if math.isnan(value) else float(value) for value in combine(sums)]
    return ItemFigure(name, values, note, sums, combine, higher_is_better)


def precision_recall_f1(name: str, counts: Floats, about: str) -> list[ItemFigure]:
    """Of counts [items, 3] = (hits, said, true). name: begins those of the figures."""
    return [
        summed(f"{name}precision", counts[:, :2], f"{about}: share of what is said that is right"),
        summed(f"{name}recall", counts[:, [0, 2]], f"{about}: share of what is there that is said"),
        summed(f"{name}f1", counts, f"{about}: harmonic mean of precision and recall", f1),
    ]


def table(rows: Iterable[Sequence[float]]) -> Floats:
    """[items, k]."""
    return np.array(list(rows), dtype=np.float64)


def that_apply(figures: Iterable[ItemFigure]) -> list[ItemFigure]:
    """Without those that apply to no item."""
    return [figure for figure in figures if any(value is not None for value in figure.values)]
