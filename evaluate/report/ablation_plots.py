"""The plots of an ablation's page, as SVG: effects with intervals, levels with seeds, value against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismcap.evaluate.ablation.sentences import between, shown, signed
from prismcap.evaluate.report import plots
from prismcap.evaluate.report.gallery import unique
from prismcap.evaluate.report.overlays import style_of
from prismcap.evaluate.report.prism_plots import WIDE_IN, label
from prismcap.evaluate.report.read import Record

BAND = "#e9edf1"  # what could not have been found
ROW_IN = 0.3
MOST_RATIO = 20.0  # costs further apart are drawn on a log scale


def forest_plot(effects: Sequence[Record], name: str) -> str | None:
    """A row per effect under the name of its axis: the difference, its interval, its seeds, and behind it
    what could not have been found. All effects are of one figure; None where none was measured."""
    effects = [effect for effect in effects if effect["difference"] is not None]
    if not effects:
        return None
    scale = 100.0 if effects[0]["share"] else 1.0
    rows = [
        row for name in unique(effect["axis"] for effect in effects) for row in _forest_rows(effects, name)
    ]
    figure, (axis,) = plots.panels(1, WIDE_IN, 0.75 + ROW_IN * len(rows))
    unit = "points" if effects[0]["share"] else "the figure's unit"
    over = "items alone" if all(effect["n_seeds"] == 1 for effect in effects) else "seeds and items"
    plots.dress(axis, "", xlabel=f"difference in {unit}, with its 95% interval over {over}")
    axis.grid(axis="y", visible=False)
    axis.axvline(0, color=plots.INK, linewidth=1)
    for y, (_, effect) in enumerate(rows):
        if effect is not None:
            _effect(axis, y, effect, scale)
    axis.set_yticks(range(len(rows)), [label(text) for text, _ in rows])
    for tick, (_, effect) in zip(axis.get_yticklabels(), rows, strict=True):
        if effect is None:
            tick.set_fontweight("bold")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    alt = "Effects: " + "; ".join(str(effect["sentence"]) for effect in effects)
    return plots.svg(figure, name, alt)


def _forest_rows(effects: Sequence[Record], axis_name: str) -> list[tuple[str, Record | None]]:
    """The axis's name with what its levels are held against, then a row per level; of a ladder, where each is
    held against another, the rows say it."""
    own = [effect for effect in effects if effect["axis"] == axis_name]
    against = unique(effect["against"] for effect in own)
    if len(against) == 1:
        return [(f"{axis_name}, against {against[0]}", None), *((effect["level"], effect) for effect in own)]
    return [
        (axis_name, None),
        *((f"{effect['level']} against {effect['against']}", effect) for effect in own),
    ]


def _effect(axis: Any, y: int, effect: Record, scale: float) -> None:
    """Filled and blue where a difference is shown, hollow and grey where none could be."""
    least = scale * effect["minimum_detectable"]
    axis.barh(y, 2 * least, left=-least, height=0.66, color=BAND, zorder=0)
    difference, low, high = (scale * effect[key] for key in ("difference", "low", "high"))
    found = shown(effect)
    colour = plots.BLUE if found else plots.GREY
    axis.errorbar(
        [difference],
        [y],
        xerr=[[max(0.0, difference - low)], [max(0.0, high - difference)]],
        fmt="o",
        color=colour,
        markerfacecolor=colour if found else "white",
        markersize=6.5,
        linewidth=1.8,
    )
    seeds = [scale * value for value in effect["by_seed"].values()]
    if len(seeds) > 1:
        axis.plot(seeds, [y + 0.25] * len(seeds), "|", color=colour, markersize=5, markeredgewidth=1.3)
    axis.text(
        1.015,
        y,
        f"{signed(effect['difference'], effect['share'])}  ({between(effect)})",
        transform=axis.get_yaxis_transform(),
        va="center",
        fontsize=9,
        color=plots.INK if found else plots.GREY,
    )


def levels_plot(rows: Sequence[Record], name: str) -> str | None:
    """A panel per axis, a row per level: the mean with its interval, and each seed as a dot. All rows are of
    one figure; None where nothing was measured."""
    rows = [row for row in rows if row["value"] is not None]
    if not rows:
        return None
    axes_names = unique(row["axis"] for row in rows)
    scale = 100.0 if rows[0]["share"] else 1.0
    most = max(sum(row["axis"] == axis_name for row in rows) for axis_name in axes_names)
    width = WIDE_IN if len(axes_names) == 1 else plots.PANEL_WIDTH_IN
    figure, axes = plots.panels(len(axes_names), width, 0.85 + ROW_IN * 1.25 * most)
    bounds = [scale * row[key] for row in rows for key in ("low", "high")]
    bounds += [scale * value for row in rows for value in row["by_seed"].values()]
    room = 0.04 * ((max(bounds) - min(bounds)) or 1.0)
    for axis, axis_name in zip(axes, axes_names, strict=True):
        own = [row for row in rows if row["axis"] == axis_name]
        plots.dress(axis, label(axis_name), xlabel="percent" if rows[0]["share"] else "value")
        axis.grid(axis="y", visible=False)
        for y, row in enumerate(own):
            _level(axis, y, row, scale)
        axis.set_yticks(range(len(own)), [label(row["level"]) for row in own])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(most - 0.4, -0.6)
        axis.set_xlim(min(bounds) - room, max(bounds) + room)
    said = [f"{row['axis']} {row['level']}: {scale * row['value']:.3g}" for row in rows]
    return plots.svg(figure, name, f"Levels: {'; '.join(said)}.")


def _level(axis: Any, y: int, row: Record, scale: float) -> None:
    colour = style_of(y)[0]
    value, low, high = (scale * row[key] for key in ("value", "low", "high"))
    axis.errorbar(
        [value],
        [y],
        xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
        fmt="D",
        color=colour,
        markersize=5.5,
        linewidth=1.8,
    )
    seeds = [scale * seed for seed in row["by_seed"].values()]
    axis.plot(seeds, [y + 0.24] * len(seeds), "o", color=colour, alpha=0.55, markersize=4, linewidth=0)


def pareto_plot(
    points: Sequence[Mapping[str, Any]], name: str, cost: tuple[float, str], share: bool
) -> str | None:
    """Value against cost, a numbered point per combination of levels, those that nothing beats joined.

    points: {number, cost, value, front, name}. cost: of cost_unit. None without any point.
    """
    if not points:
        return None
    divide, unit = cost
    scale = 100.0 if share else 1.0
    figure, (axis,) = plots.panels(1, WIDE_IN, 3.6)
    plots.dress(axis, "", xlabel=unit)
    axis.set_ylabel("percent" if share else "value", fontsize=9, color=plots.GREY)
    front = sorted((point for point in points if point["front"]), key=lambda point: point["cost"])
    axis.plot(
        [point["cost"] / divide for point in front],
        [scale * point["value"] for point in front],
        drawstyle="steps-post",
        color=plots.BLUE,
        linewidth=1.2,
        linestyle="--",
        zorder=1,
    )
    for point in points:
        x, y = point["cost"] / divide, scale * point["value"]
        on = point["front"]
        axis.plot(
            [x],
            [y],
            "o" if on else "s",
            color=plots.BLUE if on else plots.GREY,
            markerfacecolor=plots.BLUE if on else "white",
            markersize=8 if on else 6,
        )
        axis.annotate(
            str(point["number"]),
            (x, y),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=9,
            color=plots.INK if on else plots.GREY,
        )
    costs = [point["cost"] for point in points]
    if min(costs) > 0 and max(costs) > MOST_RATIO * min(costs):
        axis.set_xscale("log")
    axis.margins(x=0.08, y=0.12)
    said = ", ".join(f"{point['number']} ({point['name']})" for point in front)
    return plots.svg(figure, name, f"Value against {unit}. Nothing beats: {said}.")


def cost_unit(costs: Sequence[float], kind: str) -> tuple[float, str]:
    """(what to divide a cost by, its unit): hours below one are told in minutes, tokens in thousands or
    millions."""
    largest = max(costs, default=0.0)
    if kind == "device_hours":
        return (1 / 60, "device-minutes") if largest < 1 else (1.0, "device-hours")
    if largest >= 1e6:
        return 1e6, "million tokens"
    return (1e3, "thousand tokens") if largest >= 1e4 else (1.0, "tokens")
