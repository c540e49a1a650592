"""The figures of a run as a text table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prismcap.evaluate.columns import align
from prismcap.evaluate.intervals import MIN_ITEMS
from prismcap.evaluate.results import ABOUT


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """One line per figure: rate, 95% interval, n, and the rates of both controls; in percent. Below them the
    figures that are no shares, in their own units."""
    rows: list[tuple[str, ...]] = [("figure", "rate %", "95% interval", "n", "blank %", "shuffled %", "")]
    losses, means = [], []
    for split, figures in metrics.items():
        for name, value in figures.items() if split != ABOUT else ():
            if "rate" in value:
                rows.append(_rate_row(f"{split}.{name}", value))
            elif "mean" in value:
                means.append(_mean_line(f"{split}.{name}", value))
            elif "difference" in value:
                losses.append(_loss_line(f"{split}.{name}", value))
    return "\n".join([align(rows, 1), *means, *losses])


def _rate_row(name: str, value: Mapping[str, Any]) -> tuple[str, ...]:
    controls = value.get("controls", {})
    return (
        name,
        f"{100 * value['rate']:.1f}",
        f"{100 * value['low']:.1f} .. {100 * value['high']:.1f}",
        str(value["n"]),
        *(f"{100 * controls[key]['rate']:.1f}" if key in controls else "-" for key in ("blank", "shuffled")),
        f"n < {MIN_ITEMS}" if value["n"] < MIN_ITEMS else "",
    )


def _mean_line(name: str, value: Mapping[str, Any]) -> str:
    digits = 2 if value["unit"] == "words" else 3
    controls = "".join(f"; {control} {of['mean']:.{digits}f}" for control, of in value["controls"].items())
    unit = f" {value['unit']}" if value["unit"] != "score" else ""
    few = f"; n < {MIN_ITEMS}" if value["n"] < MIN_ITEMS else ""
    return (
        f"{name}: {value['mean']:.{digits}f}{unit} "
        f"({value['low']:.{digits}f} .. {value['high']:.{digits}f}), "
        f"n = {value['n']}{controls}{few}"
    )


def _loss_line(name: str, value: Mapping[str, Any]) -> str:
    difference = value["difference"]
    return (
        f"{name}: {value['true']['mean']:.4f} on true pictures, "
        f"{value['shuffled']['mean']:.4f} on other pictures; "
        f"difference {difference['mean']:+.4f} ({difference['low']:+.4f} .. {difference['high']:+.4f}), "
        f"n = {difference['n']}"
    )
