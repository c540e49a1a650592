"""Curves of several runs in one plot, as SVG; each label keeps its colour and its line in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prismcap.evaluate.report import plots
from prismcap.evaluate.report.gallery import unique
from prismcap.evaluate.report.read import RunFiles, series

# key of log.jsonl -> title, and the limits of its axis (none: matplotlib's)
CURVES: dict[str, tuple[str, tuple[float | None, float | None]]] = {
    "loss": ("loss per supervised token", (None, None)),
    plots.ACCURACY: ("accuracy on supervised training tokens", (0, 1)),
    "samples_per_s": ("samples per second", (0, None)),
    "supervised_tokens_per_s": ("supervised tokens per second", (0, None)),
    "mfu": (plots.MFU_TITLE, (0, None)),
}
# with more, the single steps of one run hide the mean of another
MOST_RUNS_WITH_STEPS = 3


def style_of(number: int) -> tuple[str, str]:
    """Colour and line of a label, by its place; twenty are told apart."""
    return plots.COLOURS[number % len(plots.COLOURS)], plots.LINES[number % len(plots.LINES)]


def stages_of(runs: Sequence[RunFiles]) -> list[str]:
    """The stages of all runs, each once, in the order of the first run that has it."""
    return list(dict.fromkeys(stage for run in runs for stage in run.stages))


def overlay_plot(
    runs: Sequence[RunFiles], labels: Sequence[str], key: str, name: str = "compare"
) -> str | None:
    """One panel per stage in which some run logged `key`, with every such run's curve; None without any.

    Runs with one label (seeds of one level) look alike. name: unique on the page, with the key.
    """
    stages = [stage for stage in stages_of(runs) if any(series(run.records(stage), key)[0] for run in runs)]
    if not stages:
        return None
    title, (low, high) = CURVES[key]
    width = plots.PANEL_WIDTH_IN * (2 if len(stages) == 1 else 1)
    figure, axes = plots.panels(len(stages), width)
    lines: dict[str, Any] = {}
    for axis, stage in zip(axes, stages, strict=True):
        plots.dress(axis, f"{stage}: {title}")
        smallest, largest = _draw(axis, runs, labels, stage, key, lines)
        if key == "loss" and 0 < 30 * smallest < largest:
            axis.set_yscale("log")
        else:
            axis.set_ylim(low, high)
    legend(figure, lines, labels)
    alt = f"Curves of {title} for {', '.join(lines)}; stages {', '.join(stages)}."
    return plots.svg(figure, f"{name}-{key.replace('/', '-')}", alt)


def legend(figure: Any, lines: dict[str, Any], labels: Sequence[str]) -> None:
    """Above the panels, in the order of the labels."""
    names = [label for label in unique(labels) if label in lines]
    figure.legend(
        [lines[label] for label in names],
        names,
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=9,
        handlelength=3,
    )


def _draw(
    axis: Any, runs: Sequence[RunFiles], labels: Sequence[str], stage: str, key: str, lines: dict[str, Any]
) -> tuple[float, float]:
    """The curves of one stage; the least and the greatest value there. `lines` gets one line per label."""
    seen: list[float] = []
    names = unique(labels)
    width = 2 if len(names) == len(labels) else 1.2
    for run, label in zip(runs, labels, strict=True):
        steps, values = series(run.records(stage), key)
        if not steps:
            continue
        colour, dashes = style_of(names.index(label))
        if len(runs) <= MOST_RUNS_WITH_STEPS:
            axis.plot(steps, values, color=colour, alpha=0.2, linewidth=0.7)
        marker = "o" if len(steps) < 3 else None
        means = plots.running_mean(values)
        (lines[label],) = axis.plot(steps, means, dashes, color=colour, linewidth=width, marker=marker)
        seen += values
    return min(seen), max(seen)
