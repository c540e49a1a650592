"""Several runs on one page: curves overlaid, figures with their differences, configs as what differs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from test_report import Page, fake_run

from prismcap.evaluate.intervals import difference_of_rates, wilson
from prismcap.evaluate.report.compare import (
    config_differences,
    figure_rows,
    flatten,
    labels_of,
    training_rows,
    write_comparison,
)
from prismcap.evaluate.report.overlays import CURVES, overlay_plot, style_of
from prismcap.evaluate.report.read import ReportError, read_run
from prismcap.scripts.commands.report import report

Change = Callable[[dict[str, Any]], None]


def edit(path: Path, change: Change) -> None:
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs: the second with another template and one figure worse, and without the last stage's end."""
    first = fake_run(tmp_path / "base")
    second = Path(shutil.copytree(first, tmp_path / "wide"))

    def config(value: dict[str, Any]) -> None:
        value["name"] = "wide"
        value["stages"]["align"]["template"] = {"name": "chatml", "options": [1, 2]}

    def metrics(value: dict[str, Any]) -> None:
        value["unseen_pairs"]["all_right"] |= wilson(150, 200).as_dict()
        del value["unseen_stamps"]
        value["about"] |= {"quick_in": ["align"], "limited_in": []}

    edit(second / "config.yaml", config)
    edit(second / "metrics.json", metrics)
    (second / "instruct" / "final").rmdir()
    return [first, second]


def test_page_is_one_self_contained_file_with_both_runs(runs: list[Path]) -> None:
    path = write_comparison(runs)
    assert path == runs[0].parent / "compare-base-wide.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.outside() == [] and page.open == [] and "http" not in text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for expected in ("align: loss", "instruct: samples per second", "99.0 %", "75.0 %", "quick run"):
        assert expected in page.text
    for expected in ("instruct not finished", "stages.align.template.name", "chatml", "every place right"):
        assert expected in page.text
    assert "align not finished" not in page.text and "different items" not in page.text
    assert "name: fake" not in page.text, "the rest of the config is no difference"
    assert write_comparison(runs).read_text(encoding="utf-8") == text


def test_figures_stand_side_by_side_with_their_difference(runs: list[Path]) -> None:
    rows = {row["figure"]: row["cells"] for row in figure_rows([read_run(run) for run in runs])}
    first, second = rows["unseen_pairs.all_right"]
    assert first["difference"] is None, "it is what the others are held against"
    assert second["difference"] == difference_of_rates(first["value"], second["value"]).as_dict()
    assert second["difference"]["mean"] == pytest.approx(0.75 - 0.99)
    assert rows["unseen_stamps.object_right"][1] is None
    same = rows["unseen_pairs.yes_no"][1]["difference"]
    assert same["mean"] == 0 and same["low"] < 0 < same["high"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    # Newcombe 1998, table II, method 10: (a) 56/70 - 48/80 and (b) 9/10 - 3/10
    [((48, 80), (56, 70), (0.2, 0.0524, 0.3339)), ((3, 10), (9, 10), (0.6, 0.1705, 0.8090))],
)
def test_interval_of_a_difference_is_the_published_one(
    first: tuple[int, int], second: tuple[int, int], expected: tuple[float, float, float]
) -> None:
    found = difference_of_rates(wilson(*first).as_dict(), wilson(*second).as_dict())
    assert (found.mean, found.low, found.high) == pytest.approx(expected, abs=6e-5)
    assert found.n == min(first[1], second[1])


def test_only_what_differs_of_the_configs_is_shown(runs: list[Path]) -> None:
    files = [read_run(run) for run in runs]
    assert config_differences(files) == [
        ("stages.align.template.name", ["plain", "chatml"]),
        ("stages.align.template.options", ["–", "[1, 2]"]),
    ]
    assert config_differences([files[0], files[0]]) == []
    shown = Page(
        write_comparison([runs[0], shutil.copytree(runs[0], runs[0].parent / "same")]).read_text()
    ).text
    assert "The configs are equal" in shown


def test_values_of_a_config_are_written_as_yaml() -> None:
    mix = {
        "mix": [{"name": "a", "x": None}, {"name": "b"}],
        "lr": 1e-3,
        "betas": [0.9, 0.95],
        "on": True,
        "e": {},
    }
    assert flatten({"s": mix}) == {
        "s.mix.0.name": "a",
        "s.mix.0.x": "null",
        "s.mix.1.name": "b",
        "s.lr": "0.001",
        "s.betas": "[0.9, 0.95]",
        "s.on": "true",
        "s.e": "{}",
    }


@pytest.mark.parametrize("key", ["seed", "evaluation"])
def test_runs_measured_on_different_items_say_so(runs: list[Path], key: str) -> None:
    other = {"splits": {"unseen_pairs": {"num_items": 7}}} if key == "evaluation" else 9
    edit(runs[1] / "config.yaml", lambda value: value.update({key: other}))
    shown = Page(write_comparison(runs).read_text(encoding="utf-8")).text
    assert "measured on different items" in shown
    assert ("since seed differs" in shown) == (key == "seed")


def points(svg: str, colour: str) -> int:
    """How many points the thick curves of a colour have in all."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*stroke: (#\w+); stroke-width: 2', svg)
    return sum(d.count("L") + 1 for d, stroke in paths if stroke == colour.lower() and d.count("L") > 5)


def test_every_run_has_its_curve_in_every_plot(runs: list[Path]) -> None:
    edit_log(runs[1], lambda record: record | {"mfu": 0.4} if record["stage"] == "instruct" else record)
    files = [read_run(run) for run in runs]
    loss = overlay_plot(files, ["base", "wide"], "loss")
    assert loss is not None
    counts = [points(loss, style_of(number)[0]) for number in (0, 1)]
    assert counts[0] > 100 and counts[1] == counts[0], "both runs have the same steps"
    for words in ("align: loss", "instruct: loss", ">base<", ">wide<"):
        assert words in loss
    mfu = overlay_plot(files, ["base", "wide"], "mfu")
    assert mfu is not None and "align" not in mfu and ">wide<" in mfu and ">base<" not in mfu
    assert overlay_plot(files, ["base", "wide"], "accuracy/token") is None, "nobody logged it"
    shown = Page(write_comparison(runs).read_text(encoding="utf-8")).text
    assert "matrix rate (MFU)" in shown and "40.0 %" in shown
    rows = {row["name"]: row["values"] for row in training_rows(files, "instruct")}
    assert rows["MFU"] == [None, 0.4] and rows["steps"] == [90, 90]


def edit_log(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = run / "log.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(record)) + "\n" for record in records))


def test_a_stage_that_only_one_run_has_is_drawn_for_it(runs: list[Path]) -> None:
    edit(runs[1] / "config.yaml", lambda value: value["stages"].pop("align"))
    edit_log(runs[1], lambda record: record | {"stage": "instruct"})
    files = [read_run(run) for run in runs]
    assert [row["values"][1] for row in training_rows(files, "align")] == [None] * 8
    assert overlay_plot(files, ["base", "wide"], "loss") is not None


def test_twenty_runs_are_told_apart() -> None:
    assert len({style_of(number) for number in range(20)}) == 20
    assert set(CURVES) >= {"loss", "accuracy/token", "samples_per_s", "mfu"}


def test_labels_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    assert labels_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert labels_of([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    with pytest.raises(ReportError, match="given twice"):
        labels_of([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "." / ""])


def test_the_command_compares_and_says_where(runs: list[Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(report, [*map(str, runs), "--out", str(tmp_path / "both.html")])
    assert result.exit_code == 0 and "both.html" in result.output
    assert not (runs[0] / "report.html").exists()
    long = [Path(shutil.copytree(runs[0], tmp_path / (name * 120))) for name in "ab"]
    result = CliRunner().invoke(report, [*map(str, long)])
    assert result.exit_code == 2 and "--out" in result.stderr
