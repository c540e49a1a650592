"""Several run folders in, one self-contained HTML file out: curves, figures and configs side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prismcap.evaluate.intervals import (
    MIN_ITEMS,
    MeanDifference,
    difference_of_means,
    difference_of_rates,
)
from prismcap.evaluate.report.evaluation_curves import evaluation_plot
from prismcap.evaluate.report.overlays import CURVES, overlay_plot, stages_of, style_of
from prismcap.evaluate.report.page import (
    caption_metric_rows,
    difference_rows,
    markup,
    metric_rows,
    stage_summary,
    template,
    write_page,
)
from prismcap.evaluate.report.read import ReportError, RunFiles, read_run
from prismcap.evaluate.results import ABOUT

ABSENT = "–"
# a file name may have 255 bytes, and some of them are for its suffix and for writing it aside
MOST_NAME_BYTES = 200
# another value of these, and a split has other items
CHOOSES_ITEMS = ("seed", "evaluation.splits")


def write_comparison(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Draw the runs side by side into `out`, or compare-<name>-<name>….html beside the first run's folder.

    Raises ReportError when a folder is no run, is given twice or the page cannot be written,
    MissingExtraError without matplotlib.
    """
    runs = [read_run(folder) for folder in folders]
    labels = labels_of(folders)
    if out is None:
        name = "-".join(["compare", *(label.replace(os.sep, "-") for label in labels)])
        if len(name.encode()) > MOST_NAME_BYTES:
            raise ReportError(
                f"{len(runs)} runs: their names together are too long; name the page with --out"
            )
        out = folders[0].resolve().parent / f"{name}.html"
    return write_page(out, render_comparison(runs, labels))


def labels_of(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; as much of their paths as it takes where these are equal."""
    resolved = [folder.resolve() for folder in folders]
    for path in resolved:
        if resolved.count(path) > 1:
            raise ReportError(f"{path}: given twice. Name each run once.")
    names = [path.name for path in resolved]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath(resolved)
    return [os.path.relpath(path, common) for path in resolved]


def render_comparison(runs: Sequence[RunFiles], labels: Sequence[str]) -> str:
    """The page as text. Differences are against the first run."""
    changed = config_differences(runs)
    plots = [overlay_plot(runs, labels, key) for key in CURVES]
    return template("compare.html.j2").render(
        labels=labels,
        heads=[
            _head(run, label, number) for number, (run, label) in enumerate(zip(runs, labels, strict=True))
        ],
        figures=figure_rows(runs),
        caption_figures=caption_figure_rows(runs),
        caption_losses=caption_loss_rows(runs),
        min_items=MIN_ITEMS,
        other_items=[key for key, _ in changed if key.startswith(CHOOSES_ITEMS)],
        stages=[(stage, training_rows(runs, stage)) for stage in stages_of(runs)],
        plots=[markup(svg) for svg in plots if svg is not None],
        evaluations=markup(evaluation_plot(runs, labels, "compare-evaluations")),
        changed=changed,
        versions=version_rows(runs),
        absent=ABSENT,
    )


def _head(run: RunFiles, label: str, number: int) -> dict[str, Any]:
    """What stands above a run's column."""
    about = (run.metrics or {}).get(ABOUT, {})
    colour, line = style_of(number)
    return {
        "label": label,
        "colour": colour,
        "line": {"-": "solid", ":": "dotted"}.get(line, "dashed"),
        "measured_at": about.get("measured_at", "")[:16].replace("T", " "),
        "measured": run.metrics is not None,
        "quick": bool(about.get("quick_in", about.get("quick", False))),
        "limited": about.get("limited_in", []),
        "unfinished": [stage for stage in run.stages if not (run.folder / stage / "final").is_dir()],
    }


def figure_rows(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """One row per rate that some run has: figure, note, n, cells; a cell is {value, difference} or None.

    n: of all runs, None when they differ in it. value: {rate, low, high, n}.
    difference: {mean, low, high, n} to the first run, None in its own column.
    """
    return _side_by_side([metric_rows(run.metrics or {}) for run in runs])


def caption_figure_rows(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """As figure_rows, of the caption metrics, with `better`; a value is one of page.caption_metric_rows."""
    return _side_by_side([caption_metric_rows(run.metrics or {}) for run in runs])


def _side_by_side(rows_by_run: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    by_run = [{row["figure"]: row for row in rows} for rows in rows_by_run]
    rows = []
    for figure in dict.fromkeys(figure for rows_of in by_run for figure in rows_of):
        values = [rows_of[figure]["value"] if figure in rows_of else None for rows_of in by_run]
        notes = [rows_of[figure]["note"] for rows_of in by_run if figure in rows_of]
        cells = []
        for number, value in enumerate(values):
            against = values[0] if number else None
            difference = _difference(against, value).as_dict() if against and value else None
            cells.append({"value": value, "difference": difference} if value else None)
        counts = {value["n"] for value in values if value}
        n = counts.pop() if len(counts) == 1 else None
        better = next((rows_of[figure].get("better", "") for rows_of in by_run if figure in rows_of), "")
        note = next(filter(None, notes), "")
        rows.append({"figure": figure, "note": note, "n": n, "better": better, "cells": cells})
    return rows


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> MeanDifference:
    return (difference_of_rates if "rate" in first else difference_of_means)(first, second)


def caption_loss_rows(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """One row per caption loss that some run has: figure, and its values by run, or None."""
    by_run = [{row["figure"]: row for row in difference_rows(run.metrics or {})} for run in runs]
    figures = dict.fromkeys(figure for rows_of in by_run for figure in rows_of)
    return [{"figure": figure, "cells": [rows_of.get(figure) for rows_of in by_run]} for figure in figures]


def training_rows(runs: Sequence[RunFiles], stage: str) -> list[dict[str, Any]]:
    """What the logs say of one stage: `name`, `form` (how the page writes it) and a value per run."""
    empty: dict[str, Any] = {}
    summaries = [stage_summary(run, stage) if stage in run.stages else empty for run in runs]
    forms = {
        "steps": ("steps", "count"),
        "time_s": ("time in steps", "duration"),
        "last_loss": ("loss (last 10 steps)", "%.4f"),
        "samples_per_s": ("samples/s", "%.1f"),
        "supervised_tokens_per_s": ("supervised tokens/s", "%.0f"),
        "mfu": ("MFU", "percent"),
        "padding_share": ("padding", "percent"),
        "data_wait_share": ("waiting for data", "percent"),
        "peak_memory_gb": ("peak memory", "%.1f GB"),
    }
    for summary in filter(None, summaries):
        peak_mb = summary["peak_memory_mb"]
        summary["peak_memory_gb"] = None if peak_mb is None else peak_mb / 1000
    rows = [
        {"name": name, "form": form, "values": [summary.get(key) for summary in summaries]}
        for key, (name, form) in forms.items()
    ]
    return [row for row in rows if any(value is not None for value in row["values"])]


def config_differences(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Each key in which the configs differ, with its value in every run. Names are not compared."""
    flat = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values if key != "name"))
    rows = [(key, [values.get(key, ABSENT) for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """A config as dotted keys and values in YAML; a list of plain values stays one."""
    if isinstance(value, Mapping) and value:
        items: Any = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = enumerate(value)
    else:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
        return {prefix: text.removesuffix("...\n").strip()}
    result: dict[str, str] = {}
    for key, item in items:
        result |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return result


def version_rows(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """The packages whose versions differ among the runs that were measured."""
    found = [(run.metrics or {}).get(ABOUT, {}).get("versions", {}) for run in runs]
    packages = dict.fromkeys(package for versions in found for package in versions)
    rows = [(package, [versions.get(package, ABSENT) for versions in found]) for package in packages]
    return [(package, values) for package, values in rows if len(set(values) - {ABSENT}) > 1]
