"""The curves of what was measured while training, on a run's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prismcap.evaluate.report.page import write_report
from prismcap.evaluate.report.plots import evaluations_plot
from prismcap.evaluate.report.read import ReportError, read_run

pytest.importorskip("matplotlib")


def run_folder(folder: Path, records: list[dict[str, Any]] | None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"name": "tiny", "stages": {"align": {}, "instruct": {}}})
    )
    steps = [
        {"stage": stage, "step": step, "loss": 1 / step, "time_s": 1.0}
        for stage in ("align", "instruct")
        for step in range(1, 9)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    if records is not None:
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def record(stage: str, step: int, best: bool) -> dict[str, Any]:
    rate = {"rate": step / 10, "low": step / 20, "high": step / 8, "n": 64}
    return {"stage": stage, "step": step, "figures": {"pairs.all_right": rate, "pairs.words": {"mean": 3.0}},
            "time_s": 1.0, "share": 0.1, "best": best}  # fmt: skip


def test_the_page_has_a_panel_for_each_stage_and_split(tmp_path: Path) -> None:
    records = [record("align", 2, False), record("instruct", 2, True), record("instruct", 4, True)]
    folder = run_folder(tmp_path / "run", records)
    page = write_report(folder).read_text()
    for text in ("align: pairs, while training", "instruct: pairs, while training", "all_right", "words"):
        assert text in page
    assert page.count("the best weights") == 1, "of instruct alone, once"


def test_without_evaluations_there_is_no_panel(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", None)
    assert evaluations_plot(read_run(folder)) is None
    assert "while training" not in write_report(folder).read_text()


def test_a_record_without_figures_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [{"stage": "align", "step": 2, "best": False}])
    with pytest.raises(ReportError, match=r"evaluations\.jsonl, line 1: key 'figures' is missing"):
        read_run(folder)
