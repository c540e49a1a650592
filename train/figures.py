"""Figures of held-out measures, as evaluations.jsonl holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figure = Mapping[str, Any]  # {rate | mean, low, high, n}
Figures = Mapping[str, Figure]  # by <split>.<figure>


def figure_value(figure: Figure) -> float | None:
    """The figure itself, without its interval; None where there is none."""
    for key in ("rate", "mean"):
        if figure.get(key) is not None:
            return float(figure[key])
    return None


def figure_values(figures: Figures) -> dict[str, float]:
    """Those that have a value, by name."""
    values = {name: figure_value(figure) for name, figure in figures.items()}
    return {name: value for name, value in values.items() if value is not None}
