"""Prism run folders in, one self-contained HTML file out: tables, plots and a browser of all items."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prismcap.evaluate.intervals import MIN_ITEMS
from prismcap.evaluate.report import prism_plots, prism_rows
from prismcap.evaluate.report.compare import labels_of
from prismcap.evaluate.report.gallery import unique
from prismcap.evaluate.report.page import address, markup, template, write_page
from prismcap.evaluate.report.prism_items import browser_data
from prismcap.evaluate.report.prism_read import (
    CAUSES,
    RESULTS,
    TABLE,
    PrismFiles,
    cell_name,
    name_perceivers,
    read_prism,
)
from prismcap.evaluate.report.read import Record, ReportError


def draw_prism(run_dirs: Sequence[Path], out: Path, between_runs: Sequence[Record] = ()) -> Path:
    """Draw one run, or several side by side, into `out`. Returns it.

    between_runs: comparisons of the runs' cells with each other, as results.json has them within a run; their
    `a` and `b` also name their `run`.

    Raises ReportError (a DataError) when a folder is no Prism run, is damaged, is given twice, or the page
    cannot be written; MissingExtraError without matplotlib.
    """
    if not run_dirs:
        raise ReportError("no run folder was given. Name one that `prismcap prism run CONFIG` wrote.")
    labels = labels_of(run_dirs)
    runs = [read_prism(folder, label) for folder, label in zip(run_dirs, labels, strict=True)]
    return write_page(out, render_prism(runs, out, deepcopy(list(between_runs))))


def render_prism(runs: Sequence[PrismFiles], out: Path, between_runs: Sequence[Record] = ()) -> str:
    """The page as text. The same files give the same page. `out`: where links to the files start."""
    name_perceivers(runs, between_runs)
    benchmarks = unique(name for run in runs for name in run.benchmarks)
    script = Markup(template("prism_script.html.j2").render())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("prism.html.j2").render(
        title=" · ".join(run.label for run in runs),
        several=len(runs) > 1,
        heads=[_head(run, out) for run in runs],
        benchmarks=[_benchmark(runs, name, number, between_runs) for number, name in enumerate(benchmarks)],
        causes=CAUSES,
        min_items=MIN_ITEMS,
        browser=browser_data(runs),
        script=script,
        script_hash=digest,
        cell_name=cell_name,
    )


def _head(run: PrismFiles, out: Path) -> dict[str, Any]:
    """What the page says of a run before any figure."""
    return {
        "label": run.label,
        "name": run.about.get("name", run.label),
        "measured_at": str(run.about.get("measured_at") or "")[:16].replace("T", " "),
        "seed": run.about.get("seed"),
        "versions": run.about.get("versions") or {},
        "complete": run.complete,
        "attributed": bool(run.attribution),
        "items": len(run.items),
        "files": [
            {"name": name, "address": address(run.folder / name, out)}
            for name in (RESULTS, TABLE)
            if (run.folder / name).is_file()
        ],
    }


def _benchmark(
    runs: Sequence[PrismFiles], name: str, number: int, between_runs: Sequence[Record]
) -> dict[str, Any]:
    having = [(place, run) for place, run in enumerate(runs) if name in run.benchmarks]
    parts = [_part(run, place, name, number) for place, run in having]
    return {
        "name": name,
        "anchor": f"benchmark-{number}",
        "parts": parts,
        "labels": [run.label for _, run in having],
        "side_by_side": prism_rows.side_by_side([run for _, run in having], name),
        "between_runs": prism_rows.comparison_rows(between_runs, name),
        "other_items": len({run.benchmarks[name].get("checksum") for _, run in having}) > 1,
        "budget": markup(prism_plots.budget_plot([run for _, run in having], name, f"prism-budget-{number}")),
    }


def _part(run: PrismFiles, place: int, benchmark: str, number: int) -> dict[str, Any]:
    """One run's figures of one benchmark."""
    cells = run.cells_of(benchmark)
    about = run.benchmarks[benchmark]
    at = f"{place}-{number}"  # ids on the page are unique
    tables = prism_rows.ability_tables(cells)
    for i, table in enumerate(tables):
        table["svg"] = markup(prism_plots.abilities_plot(cells, table["column"], f"prism-by-{at}-{i}"))
    heat = prism_plots.heat_plot(cells, f"prism-heat-{at}")
    causes = prism_rows.attribution_rows(run, benchmark)
    return {
        "label": run.label,
        "place": place,
        "about": about,
        "cells": cells,
        "summary": prism_rows.summary_rows(run, benchmark),
        "few": any(_few(cell) for cell in cells),
        "macros": unique(column for cell in cells for column in cell.get("macro") or {}),
        "circular": any(cell.get("circular") for cell in cells),
        "heat": markup(heat[0]) if heat else None,
        "heat_px": heat[1] if heat else 0,
        "abilities": tables,
        "lengths": markup(prism_plots.length_plot(_curve(run, benchmark), f"prism-length-{at}")),
        "length_rows": _curve(run, benchmark),
        "attribution": markup(prism_plots.attribution_plot(causes, f"prism-causes-{at}")),
        "attribution_rows": causes,
        "causes_found": prism_rows.causes_found(causes),
        "comparisons": prism_rows.comparison_rows(run.comparisons, benchmark),
        "left_out": run.left_out.get(benchmark, 0),
        "costs": prism_rows.cost_rows(cells),
        "totals": prism_rows.cost_totals(cells),
    }


def _few(cell: Record) -> bool:
    return bool(cell["n"] < MIN_ITEMS)


def _curve(run: PrismFiles, benchmark: str) -> list[Record]:
    return [row for row in run.length_curve if row["benchmark"] == benchmark]
