"""The report's plots, as SVG that can stand inside an HTML page."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from prismcap.configs.errors import MissingExtraError
from prismcap.evaluate.report.read import Record, RunFiles, series

# Okabe and Ito's palette: told apart with any common colour blindness
BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#8F4E7D", "#B27300"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE)
LINES = ("-", "--", "-.", ":")
INK, GREY, PALE = "#24292f", "#6e7781", "#d8dee4"
PANEL_WIDTH_IN, PANEL_HEIGHT_IN = 4.9, 2.9
ACCURACY = "accuracy/token"  # in log.jsonl
MFU_TITLE = "share of the device's matrix rate (MFU)"


def loss_plot(run: RunFiles) -> str:
    """One panel per stage: every step thin, a running mean bold."""
    figure, axes = panels(len(run.stages))
    for axis, stage in zip(axes, run.stages, strict=True):
        steps, losses = series(run.records(stage), "loss")
        dress(axis, f"{stage}: loss per supervised token")
        if not steps:
            _say(axis, "not trained yet")
            continue
        axis.plot(steps, losses, color=BLUE, alpha=0.35, linewidth=0.8, label="each step")
        axis.plot(steps, running_mean(losses), color=BLUE, linewidth=2, label="running mean")
        positive = [loss for loss in losses if loss > 0]
        if positive and max(positive) > 30 * min(positive):
            axis.set_yscale("log")
        axis.legend(frameon=False, fontsize=9)
    return svg(figure, "loss")


def accuracy_plot(run: RunFiles) -> str | None:
    """The share of supervised tokens that each training step predicted right; None when none is logged.

    On training data, as each step met it: it says nothing about held-out pictures.
    """
    stages = [stage for stage in run.stages if series(run.records(stage), ACCURACY)[0]]
    if not stages:
        return None
    figure, axes = panels(len(stages))
    for axis, stage in zip(axes, stages, strict=True):
        dress(axis, f"{stage}: accuracy on supervised training tokens")
        _curves(axis, run, stage, [ACCURACY])
        axis.set_ylim(0, 1)
    return svg(figure, "accuracy")


def evaluations_plot(run: RunFiles) -> str | None:
    """What was measured on held-out items while training, with 95% intervals: a panel per stage and split.

    A line marks the step whose weights were kept as the best. None when nothing was measured.
    """
    curves: dict[tuple[str, str], dict[str, list[tuple[int, Record]]]] = {}
    for record in run.evaluations:
        for name, value in record["figures"].items():
            split, _, figure_name = name.partition(".")
            points = curves.setdefault((record["stage"], split), {}).setdefault(figure_name, [])
            points.append((record["step"], value))
    if not curves:
        return None
    figure, axes = panels(len(curves))
    for axis, ((stage, split), by_name) in zip(axes, curves.items(), strict=True):
        dress(axis, f"{stage}: {split}, while training")
        for number, (name, points) in enumerate(by_name.items()):
            _with_intervals(axis, points, name, number)
        best = [record["step"] for record in run.evaluations if record["stage"] == stage and record["best"]]
        if best:
            axis.axvline(best[-1], color=GREY, linewidth=1, linestyle=":", label="the best weights")
        axis.legend(frameon=False, fontsize=8, ncols=2)
    return svg(figure, "evaluations")


def _with_intervals(axis: Any, points: Sequence[tuple[int, Record]], name: str, number: int) -> None:
    """One figure over the steps, its interval as a band."""
    steps = [step for step, _ in points]
    values = [value.get("rate", value.get("mean", value.get("value"))) for _, value in points]
    colour = COLOURS[number % len(COLOURS)]
    style = {"color": colour, "linestyle": LINES[number // len(COLOURS) % len(LINES)]}
    axis.plot(steps, values, linewidth=1.5, marker="o", markersize=3, label=name, **style)
    if all("low" in value and "high" in value for _, value in points):
        low, high = ([value[key] for _, value in points] for key in ("low", "high"))
        axis.fill_between(steps, low, high, color=colour, alpha=0.08, linewidth=0)


def learning_rate_plot(run: RunFiles) -> str:
    """Learning rate of each parameter group, one panel per stage."""
    names = sorted({key for record in run.log for key in record if key.startswith("lr/")})
    figure, axes = panels(len(run.stages))
    for axis, stage in zip(axes, run.stages, strict=True):
        dress(axis, f"{stage}: learning rate")
        if not _curves(axis, run, stage, names):
            _say(axis, "not trained yet" if not run.records(stage) else "not logged")
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    return svg(figure, "lr")


def throughput_plot(run: RunFiles) -> str | None:
    """Samples and supervised tokens per second, and MFU where it was logged; stages one after the other."""
    curves = [
        ("samples_per_s", "samples per second"),
        ("supervised_tokens_per_s", "supervised tokens per second"),
        ("mfu", MFU_TITLE),
    ]
    curves = [curve for curve in curves if series(list(run.log), curve[0])[0]]
    if not curves:
        return None
    figure, axes = panels(len(curves))
    for axis, (key, title) in zip(axes, curves, strict=True):
        dress(axis, title)
        offset = 0
        for number, stage in enumerate(run.stages):
            steps, values = series(run.records(stage), key)
            if not steps:
                continue
            shifted = [step + offset for step in steps]
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(shifted, values, color=colour, alpha=0.3, linewidth=0.8)
            axis.plot(
                shifted,
                running_mean(values),
                color=colour,
                linewidth=2,
                linestyle=LINES[number % 4],
                label=stage,
            )
            offset = shifted[-1]
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize=9)
    return svg(figure, "throughput")


def rates_plot(rows: Sequence[dict[str, Any]]) -> str | None:
    """Each rate with its 95% interval, the controls below in other colours and shapes.

    `rows` have `figure` (label) and `value`, `blank`, `shuffled`: {rate, low, high} or None.
    """
    rows = [row for row in rows if row["value"] is not None and "rate" in row["value"]]
    if not rows:
        return None
    figure, (axis,) = panels(1, width_in=2 * PANEL_WIDTH_IN, height_in=0.7 + 0.33 * len(rows))
    dress(axis, "", xlabel="share right, with its 95% interval")
    axis.grid(axis="y", visible=False)
    kinds = (("value", BLUE, "o", 0.0), ("shuffled", VERMILLION, "s", 0.24), ("blank", GREY, "D", -0.24))
    for key, colour, marker, lift in kinds:
        points = [(len(rows) - 1 - i + lift, row[key]) for i, row in enumerate(rows) if row[key] is not None]
        if not points:
            continue
        rates = [value["rate"] for _, value in points]
        low = [max(0.0, value["rate"] - value["low"]) for _, value in points]
        high = [max(0.0, value["high"] - value["rate"]) for _, value in points]
        size = 6 if key == "value" else 4
        axis.errorbar(
            rates,
            [y for y, _ in points],
            xerr=[low, high],
            fmt=marker,
            color=colour,
            markersize=size,
            linewidth=1.5,
            label={"value": "true picture", "shuffled": "another item's picture", "blank": "blank picture"}[
                key
            ],
        )
    axis.set_yticks(range(len(rows)), [row["figure"] for row in reversed(rows)])
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
    return svg(figure, "rates")


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window of about 1/20 of the curve around each point: smooth, and without lag."""
    half = max(1, len(values) // 40)
    totals = [0.0, *accumulate(values)]
    means = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)  # shrinks at the ends, to stay centred
        means.append((totals[i + reach + 1] - totals[i - reach]) / (2 * reach + 1))
    return means


def _curves(axis: Any, run: RunFiles, stage: str, names: Sequence[str]) -> bool:
    """Draw the named keys of a stage; whether there was anything to draw."""
    drawn = False
    for number, name in enumerate(names):
        steps, values = series(run.records(stage), name)
        if steps:
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
            marker = "o" if len(steps) < 15 else None
            axis.plot(
                steps,
                values,
                linewidth=2,
                marker=marker,
                markersize=4,
                label=name.partition("/")[2] or name,
                **style,
            )
            drawn = True
    if drawn:
        axis.legend(frameon=False, fontsize=9)
    return drawn


def panels(
    num: int, width_in: float = PANEL_WIDTH_IN, height_in: float = PANEL_HEIGHT_IN
) -> tuple[Any, list[Any]]:
    """A figure of `num` panels, two to a row. Plain Figure objects: pyplot keeps global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval", "drawing the plots of a report") from error
    columns = min(num, 2)
    rows = math.ceil(num / columns)
    figure = Figure(figsize=(width_in * columns, height_in * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[num:]:
        spare.set_visible(False)
    return figure, axes[:num]


def dress(axis: Any, title: str, xlabel: str = "step") -> None:
    axis.set_title(title, loc="left", fontsize=11, color=INK)
    axis.set_xlabel(xlabel, fontsize=9, color=GREY)
    axis.tick_params(labelsize=9, colors=INK, length=3)
    axis.grid(color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(PALE)


def _say(axis: Any, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=GREY)
    axis.set_xticks([])
    axis.set_yticks([])


def svg(figure: Any, name: str, alt: str = "") -> str:
    """The figure as an <svg> element whose ids are unique to `name` and which names no address.

    alt: what it shows, for those who hear the page.
    """
    import matplotlib

    out = io.StringIO()
    # text stays text: it can be searched and selected, and the file is a third of the size
    options = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with matplotlib.rc_context(options):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows the namespaces
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    said = f' aria-label="{html.escape(alt)}"' if alt else ""
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>",
        lambda found: f'<svg {found[1]} class="plot" role="img"{said}>',
        text,
        count=1,
    )
