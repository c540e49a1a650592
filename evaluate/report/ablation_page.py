"""An ablation's folder in, one self-contained HTML file out: what was asked, what was found, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prismcap.evaluate.ablation.collect import RESULTS
from prismcap.evaluate.ablation.read import CONFIG, PLAN
from prismcap.evaluate.report import ablation_plots, ablation_rows
from prismcap.evaluate.report.evaluation_curves import evaluation_plot
from prismcap.evaluate.report.gallery import unique
from prismcap.evaluate.report.overlays import overlay_plot
from prismcap.evaluate.report.page import markup, template, write_page
from prismcap.evaluate.report.read import Record, ReportError, RunFiles, read_object, read_run

COLLECT = "`prismcap report` on the folder, or `prismcap ablate CONFIG --report-only`, writes it."


def is_ablation(folder: Path) -> bool:
    """Whether a folder is one of an ablation and not of a run."""
    return (folder / PLAN).is_file()


def draw_ablation(folder: Path, out: Path | None = None) -> Path:
    """Draw `out`, or `folder`/report.html, from results.json and the cells' logs. Returns its path.

    Raises ReportError (a DataError) when results.json is missing or damaged or the page cannot be written,
    MissingExtraError without matplotlib.
    """
    page = out or folder / "report.html"
    return write_page(page, render_ablation(folder, page))


def render_ablation(folder: Path, page: Path) -> str:
    """The page as text. The same files give the same page. page: where links to the files start."""
    results = _results(folder / RESULTS)
    about, effects = results["about"], results["effects"]
    deciding = about["figures"][0]
    of_deciding = [effect for effect in effects if effect["figure"] == deciding]
    higher_is_better = all(effect["higher_is_better"] is not False for effect in of_deciding)
    points = ablation_rows.pareto_points(results, higher_is_better)
    share = any(effect["share"] for effect in of_deciding)
    divide, unit = ablation_plots.cost_unit([point["cost"] for point in points], about["cost"])
    pareto = ablation_plots.pareto_plot(points, "pareto", (divide, unit), share)
    for point in points:
        point["value"] = ablation_rows.value_text(point["value"], share)
    config = _config_text(folder / CONFIG)
    return template("ablation.html.j2").render(
        about=about,
        deciding=deciding,
        num_cells=len(results["cells"]),
        axes=[
            _axis(axis, number, of_deciding, folder, results) for number, axis in enumerate(results["axes"])
        ],
        figures=[_figure(results, figure, number) for number, figure in enumerate(about["figures"])],
        points=points,
        pareto=markup(pareto),
        pareto_unit=unit,
        pareto_divide=divide,
        higher_is_better=higher_is_better,
        cells=ablation_rows.cell_rows(results, folder, page),
        failed=ablation_rows.failed_rows(results, folder, page),
        files=_files(folder, page, about),
        command=f"prismcap ablate {_folder_name(folder, config)}/{CONFIG}",
        config_text=config,
        absent=ablation_rows.ABSENT,
    )


def _results(path: Path) -> Record:
    if not path.is_file():
        raise ReportError(f"{path}: missing. {COLLECT}")
    results = read_object(path, "written from the cells of an ablation", COLLECT)
    for key in ("about", "axes", "cells", "effects", "by_level"):
        if key not in results:
            raise ReportError(f"{path}: key {key!r} is missing: no results of an ablation. {COLLECT}")
    return results


def _axis(
    axis: Record, number: int, effects: Sequence[Record], folder: Path, results: Mapping[str, Any]
) -> Record:
    """One axis as the page tells of it: sentences, what its levels set, and its levels' curves."""
    runs, labels = _runs(axis, folder, results)
    name = f"axis-{number}"
    return {
        "name": axis["axis"],
        "question": axis["question"],
        "levels": axis["levels"],
        "cumulative": axis["cumulative"],
        "sentence": axis["sentence"],
        "effects": ablation_rows.effect_rows(
            [effect for effect in effects if effect["axis"] == axis["axis"]]
        ),
        "settings": ablation_rows.setting_rows(axis),
        "loss": markup(overlay_plot(runs, labels, "loss", name) if runs else None),
        "evaluations": markup(
            evaluation_plot(runs, labels, f"{name}-evaluations", results["about"]["figures"])
            if runs
            else None
        ),
    }


def _runs(axis: Record, folder: Path, results: Mapping[str, Any]) -> tuple[list[RunFiles], list[str]]:
    """(runs whose logs can be drawn, the level of each), in the order of the levels; of those cells in which
    only this axis is changed."""
    units = {cell["id"]: cell for cell in results["cells"]}
    runs, labels = [], []
    for level, ids in axis["cells"].items():
        for id in ids:
            if units[id]["kind"] == "prism" or units[id]["state"] == "waiting":
                continue
            try:
                runs.append(read_run(folder / "cells" / id))
            except ReportError:
                continue  # no step yet, or damaged: the table of cells says so
            labels.append(level)
    return runs, labels


def _figure(results: Mapping[str, Any], figure: str, number: int) -> Record:
    """The effects and levels of one figure."""
    effects = [effect for effect in results["effects"] if effect["figure"] == figure]
    levels = [row for row in results["by_level"] if row["figure"] == figure]
    rows = ablation_rows.level_rows(levels)
    return {
        "name": figure,
        "anchor": f"figure-{number}",
        "forest": markup(ablation_plots.forest_plot(effects, f"forest-{number}")),
        "effects": ablation_rows.effect_rows(effects),
        "unit": "points" if any(effect["share"] for effect in effects) else "its unit",
        "levels": markup(ablation_plots.levels_plot(levels, f"levels-{number}")),
        "level_rows": rows,
        "seeds": unique(seed for row in rows for seed in row["by_seed"]),
        "one_seed": {effect["n_seeds"] for effect in effects if effect["n_seeds"]} == {1},
    }


def _files(folder: Path, page: Path, about: Mapping[str, Any]) -> list[Record]:
    return [
        {"name": name, "address": ablation_rows.address(folder / name, page)}
        for name in (RESULTS, *about["tables"], PLAN, CONFIG)
        if (folder / name).is_file()
    ]


def _config_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _folder_name(folder: Path, config: str | None) -> str:
    """The folder as the config names it, so that the page says the same wherever it is drawn."""
    values = yaml.safe_load(config) if config else None
    if isinstance(values, dict) and {"output_dir", "name"} <= values.keys():
        return f"{values['output_dir']}/{values['name']}"
    return folder.name
