"""Caption metrics in the report, in the comparison of runs and in the table, each in its own unit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, fake_run

from prismcap.evaluate.intervals import Mean, difference_of_means, difference_of_rates, wilson
from prismcap.evaluate.report.compare import caption_figure_rows, figure_rows, write_comparison
from prismcap.evaluate.report.page import caption_metric_rows, measured, metric_rows, write_report
from prismcap.evaluate.report.read import read_run
from prismcap.evaluate.table import metrics_table


def add_metrics(run: Path, words: float = 9.5, chair: int = 30) -> Path:
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["about"]["metrics"] = {"length": "words of <text>", "chair": "chair 1"}
    metrics["about"]["notes"]["unseen_pairs.length.words"] = "number of words"
    metrics["unseen_pairs"]["length.words"] = {
        **Mean(words, words - 0.5, words + 0.6, 400).as_dict(),
        **of("words", None),
        "controls": {"blank": Mean(2.25, 2.0, 2.5, 400).as_dict()},
    }
    metrics["unseen_pairs"]["chair.chair_i"] = {
        **wilson(chair, 400).as_dict(),
        **of("share", False),
        "controls": {"shuffled": wilson(200, 400).as_dict()},
    }
    path.write_text(json.dumps(metrics))
    return run


def of(unit: str, higher: bool | None) -> dict[str, Any]:
    return {"unit": unit, "higher_is_better": higher}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_metrics(fake_run(tmp_path_factory.mktemp("metrics") / "fake"))


def test_the_report_shows_them_apart_from_the_rates(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.outside() == []
    head, _, tail = page.text.partition("Caption metrics")
    assert "length.words" not in head and "chair.chair_i" not in head, "no share of right items"
    for word in ("9.50 words", "9.00 words to 10.10 words", "2.25 words", "7.5 %", "50.0 %", "lower"):
        assert word in tail
    assert "number of words" in tail and "length: words of <text>; chair: chair 1" in tail
    plain = fake_run(run.parent / "plain")
    assert "Caption metrics" not in write_report(plain).read_text(encoding="utf-8")


def test_rows_of_the_two_kinds_do_not_mix(run: Path) -> None:
    metrics = read_run(run).metrics
    assert metrics is not None
    assert all("unit" not in row["value"] for row in metric_rows(metrics)) and len(metric_rows(metrics)) == 4
    words, chair = caption_metric_rows(metrics)
    assert (words["value"]["value"], words["blank"]["value"], words["shuffled"]) == (9.5, 2.25, None)
    assert (words["better"], chair["better"], chair["value"]["value"]) == ("", "lower", 0.075)
    assert (measured(0.5, "share"), measured(0.5, "score"), measured(9, "words")) == (
        "50.0 %",
        "0.500",
        "9.00 words",
    )


def test_runs_side_by_side_have_their_differences(run: Path, tmp_path: Path) -> None:
    other = add_metrics(Path(shutil.copytree(run, tmp_path / "other")), words=12.0, chair=10)
    files = [read_run(run), read_run(other)]
    rows = {row["figure"]: row for row in caption_figure_rows(files)}
    assert list(rows) == ["unseen_pairs.length.words", "unseen_pairs.chair.chair_i"]
    words = rows["unseen_pairs.length.words"]["cells"]
    first, second = (Mean(value, value - 0.5, value + 0.6, 400).as_dict() for value in (9.5, 12.0))
    assert words[0]["difference"] is None
    assert words[1]["difference"] == difference_of_means(first, second).as_dict()
    assert words[1]["difference"]["low"] > 0
    chair = rows["unseen_pairs.chair.chair_i"]["cells"][1]["difference"]
    assert chair == difference_of_rates(wilson(30, 400).as_dict(), wilson(10, 400).as_dict()).as_dict()
    assert all("chair" not in row["figure"] for row in figure_rows(files))
    page = Page(write_comparison([run, other]).read_text(encoding="utf-8"))
    for word in ("12.00 words", "+2.50 (", "2.5 %", "-5.0 (", "lower is better"):
        assert word in page.text
    assert page.open == []


def test_a_difference_of_means_is_that_of_independent_normal_means() -> None:
    a, b = (
        Mean(5.0, 5.0 - 1.96 * 0.3, 5.0 + 1.96 * 0.3, 50),
        Mean(6.0, 6.0 - 1.96 * 0.4, 6.0 + 1.96 * 0.4, 60),
    )
    found = difference_of_means(a.as_dict(), b.as_dict())
    assert (found.mean, found.low, found.high, found.n) == pytest.approx(
        (1.0, 1 - 1.96 * 0.5, 1 + 1.96 * 0.5, 50)
    )


def test_the_table_of_the_terminal_keeps_units(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    table = metrics_table(metrics)
    assert "unseen_pairs.length.words: 9.50 words (9.00 .. 10.10), n = 400; blank 2.25" in table
    assert "unseen_pairs.chair.chair_i" in table and "7.5" in table
