"""Figures of texts, and differences of two files, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prismcap.evaluate.columns import align
from prismcap.evaluate.intervals import MIN_ITEMS
from prismcap.evaluate.offline.measure import Measured
from prismcap.evaluate.statistics.power import ALPHA

ABSENT = "-"


def figures_table(measured: Measured) -> str:
    """A line per figure: value in its unit (shares in percent), 95% interval, n, what it is."""
    rows = [("figure", "value", "95% interval", "n", "note")]
    for name, figure in measured.figures.items():
        of = measured.value_of(name)
        few = f" [n < {MIN_ITEMS}]" if of["n"] < MIN_ITEMS else ""
        rows.append(
            (
                name,
                written(of["value"], figure.unit),
                f"{written(of['low'], figure.unit)} .. {written(of['high'], figure.unit)}",
                str(of["n"]),
                f"{figure.note}{_better(figure.higher_is_better)}{few}",
            )
        )
    return align(rows, 1)


def differences_table(differences: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per figure: difference and interval in its unit (shares in points), n, p-values, and the
    smallest difference that could have been found."""
    rows = [("figure", "difference", "95% interval", "n", "p", "Holm", "detectable", "")]
    for name, of in differences.items():
        unit = of["unit"]
        rows.append(
            (
                name,
                points(of["mean"], unit, "+"),
                f"{points(of['low'], unit, '+')} .. {points(of['high'], unit, '+')}",
                str(of["n"]),
                f"{of['p']:.3g}",
                f"{of['p_holm']:.3g}",
                points(of["minimum_detectable"], unit),
                "" if of["p_holm"] < ALPHA else "no difference shown",
            )
        )
    return align(rows, 1)


def written(value: float | None, unit: str) -> str:
    """A value in its unit."""
    if value is None:
        return ABSENT
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.3f}"


def points(difference: float, unit: str, sign: str = "") -> str:
    """A difference in its unit; of shares in points."""
    return f"{100 * difference:{sign}.1f} pt" if unit == "share" else f"{difference:{sign}.3f}"


def _better(higher: bool | None) -> str:
    return " (lower is better)" if higher is False else ""
