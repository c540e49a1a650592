"""What several runs were measured to be while training, overlaid: a panel per stage and figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prismcap.evaluate.report import plots
from prismcap.evaluate.report.gallery import unique
from prismcap.evaluate.report.overlays import MOST_RUNS_WITH_STEPS, legend, stages_of, style_of
from prismcap.evaluate.report.read import RunFiles, is_number


class Point(NamedTuple):
    """One measurement. low and high are the value itself where nobody wrote an interval. best: it was the
    best of its run so far."""

    step: int
    value: float
    low: float
    high: float
    is_rate: bool
    best: bool


def points_of(run: RunFiles, stage: str, figure: str) -> list[Point]:
    """The measurements of a figure in a stage, by step."""
    points = []
    for record in run.evaluations:
        values = record["figures"].get(figure)
        if record["stage"] != stage or not isinstance(values, dict):
            continue
        key = next((key for key in ("rate", "mean", "value") if is_number(values.get(key))), None)
        if key is not None:
            value = float(values[key])
            low, high = (float(values.get(bound, value)) for bound in ("low", "high"))
            points.append(Point(record["step"], value, low, high, key == "rate", bool(record.get("best"))))
    return sorted(points)


def evaluation_plot(
    runs: Sequence[RunFiles], labels: Sequence[str], name: str, figures: Sequence[str] = ()
) -> str | None:
    """Every figure against the step, with its interval where the runs are few, the best checkpoint starred;
    None where nothing was measured. figures: draw these alone. Runs with one label look alike."""
    known = unique(figure for run in runs for record in run.evaluations for figure in record["figures"])
    wanted = [figure for figure in known if not figures or figure in figures]
    shown = [
        (stage, figure)
        for stage in stages_of(runs)
        for figure in wanted
        if any(points_of(run, stage, figure) for run in runs)
    ]
    if not shown:
        return None
    width = plots.PANEL_WIDTH_IN * (2 if len(shown) == 1 else 1)
    panel, axes = plots.panels(len(shown), width)
    names = unique(labels)
    lines: dict[str, Any] = {}
    for axis, (stage, figure) in zip(axes, shown, strict=True):
        plots.dress(axis, f"{stage}: {figure}")
        for run, label in zip(runs, labels, strict=True):
            points = points_of(run, stage, figure)
            if points:
                look = style_of(names.index(label))
                lines[label] = _draw(axis, points, look, len(runs) <= MOST_RUNS_WITH_STEPS)
        if all(point.is_rate for run in runs for point in points_of(run, stage, figure)):
            axis.set_ylim(-0.02, 1.02)
    if len(names) > 1:
        legend(panel, lines, labels)
    alt = f"Measured while training: {', '.join(f'{figure} in {stage}' for stage, figure in shown)}."
    return plots.svg(panel, name, alt)


def _draw(axis: Any, points: Sequence[Point], look: tuple[str, str], with_interval: bool) -> Any:
    """One run's curve; returns its line."""
    colour, dashes = look
    steps = [point.step for point in points]
    if with_interval:
        low, high = [point.low for point in points], [point.high for point in points]
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    values = [point.value for point in points]
    (line,) = axis.plot(steps, values, dashes, color=colour, linewidth=1.6, marker="o", markersize=3.5)
    best = [point for point in points if point.best]
    if best:
        axis.plot(
            [best[-1].step], [best[-1].value], "*", color=colour, markersize=12, markeredgecolor="white"
        )
    return line
