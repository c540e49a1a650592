"""What several runs were measured to be while training, in one plot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, fake_run

from prismcap.evaluate.intervals import wilson
from prismcap.evaluate.report.compare import write_comparison
from prismcap.evaluate.report.evaluation_curves import evaluation_plot, points_of
from prismcap.evaluate.report.read import read_run

FIGURE = "held_out.all_right"


def record(stage: str, step: int, right: int, best: bool = False, **values: Any) -> dict[str, Any]:
    figures = {FIGURE: wilson(right, 50).as_dict(), "held_out.bleu_4": {"mean": right / 100, "n": 50}}
    return {"stage": stage, "step": step, "figures": figures, "best": best, "share": 0.04, **values}


def write_evaluations(folder: Path, records: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "evaluations.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    records = [
        record("align", 20, 5),
        record("instruct", 30, 20, best=True),
        record("instruct", 60, 41, best=True),
    ]
    records += [record("instruct", 90, 38, share=0.05)]
    return write_evaluations(fake_run(tmp_path / "fake"), records)


def test_points_are_the_records_by_step(run: Path) -> None:
    with (run / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(record("instruct", 45, 25)) + "\n" + '{"stage": "instr')  # killed while writing
    files = read_run(run)
    points = points_of(files, "instruct", FIGURE)
    assert [(point.step, point.value, point.best) for point in points] == [
        (30, 0.4, True), (45, 0.5, False), (60, 0.82, True), (90, 0.76, False),
    ]  # fmt: skip
    assert points[0].low == wilson(20, 50).as_dict()["low"] and points[0].is_rate
    bleu = points_of(files, "align", "held_out.bleu_4")[0]
    assert (bleu.value, bleu.low, bleu.high, bleu.is_rate) == (0.05, 0.05, 0.05, False)
    assert points_of(files, "align", "held_out.other") == []


def test_runs_side_by_side_share_their_panels(run: Path, tmp_path: Path) -> None:
    other = write_evaluations(fake_run(tmp_path / "other"), [record("instruct", 30, 10)])
    text = Page(write_comparison([run, other]).read_text()).text
    assert "Measured while training" in text and text.count(f"instruct: {FIGURE}") == 1
    files = [read_run(run), read_run(other)]
    svg = evaluation_plot(files, ["one", "other"], "both", [FIGURE])
    assert svg is not None and "bleu_4" not in svg and ">other</text>" in svg
    third = fake_run(tmp_path / "third")
    assert evaluation_plot([read_run(third)], ["third"], "none") is None
    alone = write_comparison([third, fake_run(tmp_path / "fourth")]).read_text()
    assert "Measured while training" not in Page(alone).text


def test_seeds_of_one_level_are_one_name_in_the_legend(run: Path) -> None:
    files = read_run(run)
    svg = evaluation_plot([files, files, files], ["a", "b", "a"], "levels", [FIGURE])
    assert svg is not None and len(re.findall(r">a</text>", svg)) == 1 and ">b</text>" in svg
