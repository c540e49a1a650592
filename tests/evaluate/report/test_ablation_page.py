"""The page of an ablation: every effect is on it, what failed and what it cost; and nothing from outside."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ablation_folder import ablation_folder, cell_id, write_lines, write_status
from click.testing import CliRunner
from test_report import Page, fake_run

from prismcap.configs.errors import DataError
from prismcap.evaluate.ablation.collect import collect
from prismcap.evaluate.report.ablation_page import draw_ablation
from prismcap.evaluate.report.ablation_plots import cost_unit, forest_plot, levels_plot, pareto_plot
from prismcap.evaluate.report.ablation_rows import (
    combination_name,
    command_text,
    pareto_points,
    setting_rows,
)
from prismcap.evaluate.report.read import ReportError
from prismcap.scripts.commands.report import report
from prismcap.train.ablate.status import log_path

AXES = {"connector": ("linear", "mlp", "qformer"), "data": ("captions", "questions")}
FIGURES = ("held_out.all_right", "held_out.place")
HOSTILE = 'RuntimeError: <script>alert("x")</script> & out of memory'


def measure(levels: Mapping[str, str], seed: int) -> dict[str, float]:
    """mlp is clearly better; the others make no difference."""
    rng = random.Random(f"{levels} {seed}")
    rate = 0.4 + 0.4 * (levels["connector"] == "mlp") + 0.01 * seed
    return {f"item{number}": float(rng.random() < rate) for number in range(120)}


def study(folder: Path, **options: Any) -> Path:
    made = ablation_folder(folder, AXES, dict.fromkeys(FIGURES, measure), share_align=True, **options)
    for number, log in enumerate(sorted((made / "cells").glob("*/log.jsonl"))):
        records = [json.loads(line) for line in log.read_text().splitlines()]
        write_lines(log, [record | {"time_s": 2.0 + number} for record in records])
    return made


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = study(tmp_path_factory.mktemp("ablation") / "tiny")
    collect(folder)
    draw_ablation(folder)
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_page_is_one_self_contained_file(drawn: Path) -> None:
    text = (drawn / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    beside = r"<a href=[\w./-]+\.(json|csv|arrow|yaml)>"
    outside = [link for link in page.outside() if not re.fullmatch(beside, link)]
    assert outside == [] and page.open == [] and "http" not in text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    draw_ablation(drawn)
    assert (drawn / "report.html").read_text(encoding="utf-8") == text


def test_the_question_the_sentences_and_every_effect_are_on_it(drawn: Path) -> None:
    text = Page((drawn / "report.html").read_text()).text
    results = results_of(drawn)
    assert "Which connector, and for how long?" in text and "9 of 9" not in text and "12 of 12" in text
    for axis in results["axes"]:
        assert axis["sentence"] in text and axis["question"] in text
    for effect in results["effects"]:
        if effect["figure"] == FIGURES[0]:
            assert effect["sentence"] in text
    assert "connector: mlp against linear +" in text and "no difference could be shown" in text
    for heading in ("Effects", "Levels", "Curves", "What the levels set", "Cells", "Reproduce"):
        assert heading in text
    assert "prismcap ablate checkpoints/tiny/ablation.yaml" in text
    assert "align: loss" in text and "model.connector.name" in text and "Not all cells" not in text


def test_every_plot_says_what_it_shows(drawn: Path) -> None:
    plots = re.findall(r"<svg [^>]*class=\"plot\"[^>]*>", (drawn / "report.html").read_text())
    assert len(plots) == 2 * 2 + 1 + 2
    assert all("aria-label=" in plot for plot in plots)
    assert sum("mlp against linear: +" in plot for plot in plots) == 2


def test_what_failed_is_told_with_its_last_words(tmp_path: Path) -> None:
    folder = study(tmp_path / "tiny", seeds=(0, 1))
    id = cell_id({"connector": "qformer", "data": "captions"}, 1)
    write_status(folder, f"cells/{id}", "failed", error=HOSTILE, attempts=2)
    log = log_path(folder, f"cells/{id}")
    log.parent.mkdir()
    log.write_text("…")
    collect(folder)
    text = draw_ablation(folder, tmp_path / "elsewhere.html").read_text()
    page = Page(text)
    assert HOSTILE in page.text and "<script>" not in text
    assert "Not all cells are done" in page.text and "7 done, 1 failed" in page.text
    assert "without seed 1" in page.text and "--retry-failed" in page.text and "2 attempts" in page.text
    assert ("a", {"href": f"tiny/logs/{log.name}"}) in page.tags


def test_an_ablation_of_which_nothing_is_done_is_drawn(tmp_path: Path) -> None:
    folder = study(tmp_path / "tiny", seeds=(0,))
    for cell in results_of_plan(folder):
        write_status(folder, cell["unit"], "waiting")
    collect(folder)
    text = Page(draw_ablation(folder).read_text()).text
    assert "0 of 4" in text and "No effect could be measured yet" in text
    assert "No cell has both the figure and a cost yet" in text and "no cell is done and measured yet" in text


def results_of_plan(folder: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((folder / "plan.json").read_text())["cells"]
    return cells


def test_one_seed_is_said_above_the_effects(tmp_path: Path) -> None:
    folder = study(tmp_path / "tiny", seeds=(3,))
    collect(folder)
    text = Page(draw_ablation(folder).read_text()).text
    assert "Seeds were not varied: the intervals are over items alone" in text


@pytest.mark.parametrize("kind", ["device_hours", "tokens"])
def test_nothing_beats_the_front_and_something_beats_all_others(kind: str) -> None:
    rng = random.Random(3)
    cells = [
        {
            "levels": {"axis": f"level{number}"},
            "cost": {"device_hours": 1.0, "tokens": 1} | {kind: rng.randint(1, 9)},
            "figures": {"a.b": {"value": rng.randint(0, 9) / 10, "share": True}},
        }
        for number in range(30)
    ]
    results = {"about": {"figures": ["a.b"], "cost": kind}, "cells": cells}
    for higher in (True, False):
        points = pareto_points(results, higher)
        assert [point["number"] for point in points] == list(range(1, 31))
        for point in points:
            beaten = False
            for other in points:
                better = other["value"] > point["value"] if higher else other["value"] < point["value"]
                as_good = better or other["value"] == point["value"]
                cheaper = other["cost"] < point["cost"]
                beaten |= as_good and other["cost"] <= point["cost"] and (better or cheaper)
            assert point["front"] != beaten


def test_a_point_is_the_mean_over_seeds() -> None:
    def cell(level: str, seed: int, cost: float, value: float) -> dict[str, Any]:
        return {
            "levels": {"axis": level}, "seed": seed, "cost": {"tokens": cost},
            "figures": {"a.b": {"value": value, "share": True}},
        }  # fmt: skip

    cells = [cell("x", 0, 10, 0.2), cell("x", 1, 30, 0.4), cell("y", 0, 5, 0.1)]
    cells.append({**cell("y", 1, 5, 0), "figures": {}})
    first, second = pareto_points({"about": {"figures": ["a.b"], "cost": "tokens"}, "cells": cells})
    assert (first["name"], first["cost"], first["value"], first["seeds"]) == ("axis y", 5, 0.1, 1)
    assert second["name"] == "every axis at its first level" and second["front"]
    assert (second["cost"], second["value"]) == (20, pytest.approx(0.3))


def test_forest_rows_are_the_effects_under_their_axes(drawn: Path) -> None:
    effects = [effect for effect in results_of(drawn)["effects"] if effect["figure"] == FIGURES[0]]
    svg = forest_plot(effects, "forest")
    assert svg is not None
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    for effect in effects:
        assert effect["level"] in texts
        shown = (
            f"{100 * effect['difference']:+.1f}  ({100 * effect['low']:.1f} .. {100 * effect['high']:.1f})"
        )
        assert shown.replace("-0.0", "0.0") in [text.replace("-0.0", "0.0") for text in texts]
    assert {"connector, against linear", "data, against captions"} <= set(texts)
    ladder = forest_plot([{**effects[0], "against": "a"}, {**effects[1], "against": "b"}], "ladder")
    assert ladder is not None and "mlp against a" in ladder and "qformer against b" in ladder
    assert forest_plot([{**effects[0], "difference": None}], "none") is None


def test_plots_without_anything_to_draw_are_none() -> None:
    assert levels_plot([], "levels") is None
    assert pareto_plot([], "pareto", (1.0, "tokens"), True) is None


@pytest.mark.parametrize(
    ("costs", "kind", "unit"),
    [
        ([0.2, 0.5], "device_hours", "device-minutes"),
        ([0.2, 30], "device_hours", "device-hours"),
        ([500], "tokens", "tokens"),
        ([2e4], "tokens", "thousand tokens"),
        ([3e6], "tokens", "million tokens"),
    ],
)
def test_costs_are_told_in_a_unit_that_fits(costs: list[float], kind: str, unit: str) -> None:
    assert cost_unit(costs, kind)[1] == unit


def test_settings_names_and_commands_in_words() -> None:
    axis = {"levels": ["a", "b"], "settings": {"a": {}, "b": {"x.y": [1, 2], "z": "w"}}}
    assert setting_rows(axis) == [("x.y", ["–", "[1, 2]"]), ("z", ["–", "w"])]
    assert combination_name({"a": "x", "b": "z"}, {"a": "x", "b": "y"}) == "b z"
    assert command_text(["prismcap", "train", "a b.yaml"]) == "prismcap train 'a b.yaml'"
    assert command_text("torchrun …") == "torchrun …" and command_text(None) is None


def test_the_command_reads_the_cells_again_and_draws(tmp_path: Path) -> None:
    folder = study(tmp_path / "tiny", seeds=(0, 1))
    result = CliRunner().invoke(report, [str(folder)])
    assert result.exit_code == 0 and result.output == f"Report: {folder / 'report.html'}\n"
    assert (folder / "results.json").is_file() and (folder / "table.csv").is_file()
    other = CliRunner().invoke(report, [str(folder), str(fake_run(tmp_path / "run"))])
    assert other.exit_code == 2 and "is drawn by itself" in other.output
    (folder / "plan.json").write_text("{}")
    broken = CliRunner().invoke(report, [str(folder)])
    assert broken.exit_code == 2 and "key 'name' is missing" in broken.output


def test_a_page_wants_results_first(tmp_path: Path) -> None:
    folder = study(tmp_path / "tiny", seeds=(0,))
    with pytest.raises(ReportError, match=r"results.json: missing"):
        draw_ablation(folder)
    (folder / "results.json").write_text("{}")
    with pytest.raises(DataError, match="key 'about' is missing"):
        draw_ablation(folder)
