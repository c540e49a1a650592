"""The plots of a Prism page, as SVG: abilities, perceiver x reasoner, lengths, tokens, attribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prismcap.configs.schema.prism import BLIND, END_TO_END
from prismcap.evaluate.report import plots
from prismcap.evaluate.report.gallery import unique
from prismcap.evaluate.report.prism_read import CAUSES, PrismFiles, cell_name
from prismcap.evaluate.report.read import Record

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
# right ones green, what the pipeline lost in blue and orange, what was no answer in greys and purple
CAUSE_COLOURS = {
    "right": "#009E73",
    "guessed_blind": "#8fd6bd",
    "perception_lost": "#0072B2",
    "reasoning_lost": "#E69F00",
    "refused": "#8F4E7D",
    "extraction_failed": "#CFA3C2",
    "cut_off": "#57606a",
    "failed": "#1b1f24",
    "unexplained": "#c9d1d9",
}
WHITE_TEXT = ("right", "perception_lost", "refused", "cut_off", "failed")
WIDE_IN = 2 * plots.PANEL_WIDTH_IN
PX_PER_IN = 95
MOST_LABEL = 34  # characters beside an axis
LEAST_SHARE_WRITTEN = 0.035  # a narrower segment has no room for its count


def label(text: str) -> str:
    """Text as an axis can carry it: no formula, not endless."""
    short = text if len(text) <= MOST_LABEL else text[: MOST_LABEL - 1] + "…"
    return short.replace("$", r"\$")


def styles(cells: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each perceiver, by its place: equal in all plots of a benchmark."""
    names = [name for name in unique(cell["who"] for cell in cells) if name != BLIND]
    found: dict[str, dict[str, Any]] = {
        name: {"color": plots.COLOURS[i % len(plots.COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }
    return found | {BLIND: {"color": plots.GREY, "marker": "o", "markerfacecolor": "white"}}


def bounds(rates: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Distances from the rates to the ends of their intervals, as matplotlib wants them."""
    low = [max(0.0, rate["rate"] - rate["low"]) for rate in rates]
    return [low, [max(0.0, rate["high"] - rate["rate"]) for rate in rates]]


def abilities_plot(cells: Sequence[Record], column: str, name: str) -> str | None:
    """A panel per reasoner, a row per ability, a point with its interval per perceiver; None without any."""
    cells = [cell for cell in cells if cell.get("by", {}).get(column)]
    values = unique(value for cell in cells for value in cell["by"][column])
    if not values:
        return None
    reasoners = unique(cell["reasoner"] for cell in cells)
    look = styles(cells)
    series = unique(cell["who"] for cell in cells)
    pitch = 0.13 * len(series) + 0.16  # inches of one ability
    width = WIDE_IN if len(reasoners) == 1 else plots.PANEL_WIDTH_IN
    figure, axes = plots.panels(len(reasoners), width, 0.75 + pitch * len(values))
    drawn: dict[str, Any] = {}
    for axis, reasoner in zip(axes, reasoners, strict=True):
        plots.dress(axis, label(reasoner), xlabel="share right, with its 95% interval")
        axis.grid(axis="y", visible=False)
        for edge in range(1, len(values)):
            axis.axhline(edge - 0.5, color=plots.PALE, linewidth=0.8)
        for cell in (cell for cell in cells if cell["reasoner"] == reasoner):
            who = cell["who"]
            lift = (series.index(who) + 0.5) / len(series) * 0.8 - 0.4
            points = [(i + lift, cell["by"][column].get(value)) for i, value in enumerate(values)]
            points = [(y, rate) for y, rate in points if rate is not None]
            rates = [rate for _, rate in points]
            drawn[who] = axis.errorbar(
                [rate["rate"] for rate in rates],
                [y for y, _ in points],
                xerr=bounds(rates),
                linestyle="none",
                markersize=4.5,
                linewidth=1.4,
                **look[who],
            )
        axis.set_yticks(range(len(values)), [label(value) for value in values])
        axis.set_ylim(len(values) - 0.5, -0.5)
        axis.set_xlim(-0.02, 1.02)
    _legend(figure, drawn)
    return plots.svg(figure, name)


def heat_plot(cells: Sequence[Record], name: str) -> tuple[str, int] | None:
    """Perceivers down, reasoners across, darker is better; each cell says its rate, interval and n.

    Returns the plot and the width in px at which its text is read easily; None without any cell.
    """
    cells = [cell for cell in cells if cell["micro"] is not None]
    if not cells:
        return None
    rows = sorted(unique(cell["who"] for cell in cells), key=lambda row: row == BLIND)
    columns = sorted(unique(cell["reasoner"] for cell in cells), key=lambda column: column == END_TO_END)
    rates = [cell["micro"]["rate"] for cell in cells]
    low, high = min(rates), max(rates)
    if high - low < 0.3:  # a small difference must not look like a large one
        low, high = max(0.0, (low + high) / 2 - 0.15), min(1.0, (low + high) / 2 + 0.15)
    width = max(6.4, 1.8 + 1.6 * len(columns))
    figure, (axis,) = plots.panels(1, width, 0.7 + 0.78 * len(rows))
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    scale = LinearSegmentedColormap.from_list("rates", ["#f2f7fb", "#7db8dc", "#00497a"])
    for row in range(len(rows)):
        for column in range(len(columns)):
            axis.add_patch(Rectangle((column, row), 1, 1, facecolor="#fafbfc", edgecolor="white"))
    for cell in cells:
        rate = cell["micro"]
        x, y = columns.index(cell["reasoner"]), rows.index(cell["who"])
        shade = (rate["rate"] - low) / (high - low)
        axis.add_patch(Rectangle((x, y), 1, 1, facecolor=scale(shade), edgecolor="white", linewidth=2))
        ink = "white" if shade > 0.62 else plots.INK
        share = f"{100 * rate['rate']:.1f} %"
        axis.text(x + 0.5, y + 0.36, share, ha="center", va="center", color=ink, fontsize=12, weight="bold")
        between = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}, n = {rate['n']:,}"
        axis.text(x + 0.5, y + 0.72, between, ha="center", va="center", color=ink, fontsize=9)
    plots.dress(axis, "", xlabel="")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    axis.set_xticks([i + 0.5 for i in range(len(columns))], [label(c) for c in columns])
    axis.set_yticks([i + 0.5 for i in range(len(rows))], [label(row) for row in rows])
    axis.set_xlim(0, len(columns))
    axis.set_ylim(len(rows), 0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return plots.svg(figure, name), round(width * PX_PER_IN)


def length_plot(curve: Sequence[Record], name: str) -> str | None:
    """A panel per reasoner: share right against the length of the description, a line per perceiver."""
    curve = [row for row in curve if row.get("rate")]
    reasoners = unique(row["reasoner"] for row in curve)
    if not reasoners:
        return None
    look = styles(curve)
    units = " or ".join(unique(row.get("unit", "tokens") for row in curve))
    width = WIDE_IN if len(reasoners) == 1 else plots.PANEL_WIDTH_IN
    figure, axes = plots.panels(len(reasoners), width)
    drawn: dict[str, Any] = {}
    for axis, reasoner in zip(axes, reasoners, strict=True):
        plots.dress(axis, label(reasoner), xlabel=f"{units} of the description")
        for who in unique(row["who"] for row in curve if row["reasoner"] == reasoner):
            points = [row for row in curve if (row["who"], row["reasoner"]) == (who, reasoner)]
            points.sort(key=lambda row: row["tokens"]["mean"])
            rates = [row["rate"] for row in points]
            drawn[who] = axis.errorbar(
                [row["tokens"]["mean"] for row in points],
                [rate["rate"] for rate in rates],
                yerr=bounds(rates),
                markersize=4.5,
                linewidth=1.4,
                **look[who],
            )
        axis.set_ylim(-0.02, 1.02)
    _legend(figure, drawn)
    return plots.svg(figure, name)


def tokens_written(cell: Mapping[str, Any]) -> float | None:
    """Tokens that perceiver and reasoner wrote for one question, in the mean; None where not counted."""
    cost = cell.get("cost") or {}
    spent = [cost[stage]["tokens_out"] for stage in ("perceive", "reason") if stage in cost]
    counted = [tokens for tokens in spent if tokens is not None]
    return sum(counted) / cell["n"] if counted and cell["n"] else None


def budget_plot(runs: Sequence[PrismFiles], benchmark: str, name: str) -> str | None:
    """A panel per reasoner: share right against the tokens written, a point per perceiver and run.

    Points of one perceiver in several runs are joined: runs with other token budgets make a curve.
    """
    points = [
        (tokens, cell)
        for run in runs
        for cell in run.cells_of(benchmark)
        if (tokens := tokens_written(cell)) is not None and cell["micro"] is not None
    ]
    reasoners = unique(cell["reasoner"] for _, cell in points)
    if not reasoners:
        return None
    look = styles(cell for _, cell in points)
    width = WIDE_IN if len(reasoners) == 1 else plots.PANEL_WIDTH_IN
    figure, axes = plots.panels(len(reasoners), width)
    drawn: dict[str, Any] = {}
    for axis, reasoner in zip(axes, reasoners, strict=True):
        plots.dress(axis, label(reasoner), xlabel="tokens written per question")
        here = [(tokens, cell) for tokens, cell in points if cell["reasoner"] == reasoner]
        for who in unique(cell["who"] for _, cell in here):
            line = sorted((tokens, i) for i, (tokens, cell) in enumerate(here) if cell["who"] == who)
            rates = [here[i][1]["micro"] for _, i in line]
            drawn[who] = axis.errorbar(
                [tokens for tokens, _ in line],
                [rate["rate"] for rate in rates],
                yerr=bounds(rates),
                markersize=5,
                linewidth=1.4,
                **look[who],
            )
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlim(left=0)
    _legend(figure, drawn)
    return plots.svg(figure, name)


def attribution_plot(rows: Sequence[Record], name: str) -> str | None:
    """A bar per cell, stacked by cause; the counts stand in the bars, their sum behind them."""
    rows = [row for row in rows if row["n"]]
    if not rows:
        return None
    figure, (axis,) = plots.panels(1, WIDE_IN, 0.95 + 0.36 * len(rows))
    plots.dress(axis, "", xlabel="share of the items; the numbers count them")
    axis.grid(axis="y", visible=False)
    drawn: dict[str, Any] = {}
    starts = [0.0] * len(rows)
    for cause in CAUSES:
        shares = [row["causes"].get(cause, 0) / row["n"] for row in rows]
        if not any(shares):
            continue
        drawn[cause.replace("_", " ")] = axis.barh(
            range(len(rows)), shares, left=starts, height=0.72, color=CAUSE_COLOURS[cause], edgecolor="white"
        )
        for y, (row, share) in enumerate(zip(rows, shares, strict=True)):
            if share >= LEAST_SHARE_WRITTEN:
                axis.text(
                    starts[y] + share / 2,
                    y,
                    f"{row['causes'][cause]:,}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if cause in WHITE_TEXT else plots.INK,
                )
            starts[y] += share
    for y, row in enumerate(rows):
        axis.text(1.01, y, f"n = {row['n']:,}", va="center", fontsize=8.5, color=plots.INK)
    axis.set_yticks(range(len(rows)), [label(cell_name(row)) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.09)
    axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20 %", "40 %", "60 %", "80 %", "100 %"])
    _legend(figure, drawn)
    return plots.svg(figure, name)


def _legend(figure: Any, drawn: Mapping[str, Any], columns: int = 5) -> None:
    figure.legend(
        list(drawn.values()),
        [label(name) for name in drawn],
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
