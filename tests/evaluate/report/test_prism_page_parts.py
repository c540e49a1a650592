"""Runs that are partial or damaged, and what may be said of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_prism_page import drawn, edited, results_of, small
from test_report import Page, fake_run

from prismcap.configs.errors import DataError
from prismcap.evaluate.prism import attribution
from prismcap.evaluate.report import prism_read
from prismcap.evaluate.report.prism_page import draw_prism
from prismcap.evaluate.report.prism_rows import cost_totals, is_shown, verdict


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_questions": 1}, "1 question, 3 cells"),
        ({"attributed": False}, "Not attributed"),
        ({"pictures": False}, "12 questions have no picture"),
        ({"reasoners": ["keyword", "smollm2"]}, "12 questions, 5 cells"),
    ],
)
def test_a_small_run_is_drawn(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    page = Page(drawn(small(tmp_path / "run", **options)))
    assert page.open == [] and said in page.text


def test_a_run_without_items_curve_or_comparisons_is_drawn(tmp_path: Path) -> None:
    folder = small(tmp_path / "run")
    (folder / "items.jsonl").unlink()
    (folder / "attribution.jsonl").unlink()
    (folder / "results.csv").unlink()
    results = results_of(folder)
    about = {"name": "run", "complete": False}
    edited(folder, about=about, comparisons=[], length_curve=[], attribution=[])
    page = Page(drawn(folder))
    for said in (
        "No items are listed",
        "is not complete",
        "compares no cells",
        "Not attributed",
        "Not recorded",
    ):
        assert said in page.text
    assert page.outside() == ["<a href=results.json>"]
    bare = {"n": 0, "micro": None, "macro": {}, "by": {}, "refusals": {}, "cost": {}}
    edited(folder, cells=[{**results["cells"][0], **bare}])
    said = Page(drawn(folder)).text
    assert "Nothing was answered yet" in said and "names no abilities" in said and "No tokens" in said
    edited(folder, cells=[])
    assert "12 questions, 0 cells" in Page(drawn(folder)).text


def test_a_benchmark_of_one_run_only_is_drawn_with_the_other(tmp_path: Path) -> None:
    first, second = small(tmp_path / "a"), small(tmp_path / "b", benchmark="pope")
    page = Page(draw_prism([first, second], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.open == [] and "scenes · a" in page.text and "pope · b" in page.text
    assert "scenes · b" not in page.text


def damage(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_text(change((folder / name).read_text()))

    return apply


def change_results(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        results = results_of(folder)
        change(results)
        edited(folder, **results)

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda folder: (folder / "results.json").unlink(), "no Prism run.*prismcap prism run CONFIG"),
        (damage("results.json", lambda text: text[:-9]), "results.json: not valid JSON.*prism run"),
        (damage("results.json", lambda _: "[]"), "expected an object, found list"),
        (change_results(lambda r: r.update(cells={})), "key 'cells' is missing or is no list"),
        (change_results(lambda r: r["cells"][1].pop("micro")), r"cells\[1\] has no key 'micro'"),
        (change_results(lambda r: r["attribution"][0].update(n=13)), "12 causes, n = 13"),
        (
            change_results(lambda r: r["attribution"][0].update(causes={"gremlins": 12})),
            "unknown cause 'gremlins'",
        ),
        (
            damage("attribution.jsonl", lambda text: text.partition("\n")[2]),
            "attribution.jsonl: .*results.json counts.*two scorings",
        ),
        (damage("attribution.jsonl", lambda text: text.replace('"id"', '"di"', 1)), "row 1: key 'id'"),
        (damage("items.jsonl", lambda text: text.replace('"how"', '"why"', 1)), "row 1: key 'how'"),
        (damage("items.jsonl", lambda text: "{" + text), "items.jsonl, line 1: not valid JSON"),
        (damage("items.jsonl", lambda text: text.replace("pictures/", "../../")), "outside the run folder"),
    ],
)
def test_damage_is_named_with_its_remedy(tmp_path: Path, apply: Callable[[Path], None], message: str) -> None:
    folder = small(tmp_path / "run")
    apply(folder)
    with pytest.raises(DataError, match=f"(?s){message}") as error:
        drawn(folder)
    assert str(folder) in str(error.value)
    assert not (folder / "report.html").exists()


def test_what_is_no_prism_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such folder.*prismcap prism run CONFIG"):
        draw_prism([tmp_path / "none"], tmp_path / "page.html")
    trained = fake_run(tmp_path / "trained")
    with pytest.raises(DataError, match=r"results.json is missing.*prismcap report .*trained"):
        draw_prism([trained], tmp_path / "page.html")
    folder = small(tmp_path / "run")
    with pytest.raises(DataError, match="given twice"):
        draw_prism([folder, folder], tmp_path / "page.html")
    with pytest.raises(DataError, match="no run folder was given"):
        draw_prism([], tmp_path / "page.html")
    with pytest.raises(DataError, match="cannot be written"):
        draw_prism([folder], tmp_path / "no" / "page.html")


def comparison(mean: float, low: float, high: float, p_holm: float | None) -> dict[str, Any]:
    return {
        "a": {"who": "one", "reasoner": "llm"},
        "b": {"who": "two", "reasoner": "llm"},
        "difference": {"mean": mean, "low": low, "high": high, "n": 100},
        "p_holm": p_holm,
        "minimum_detectable": 0.1,
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.2, 0.1, 0.3, 0.001), "two + llm is better than one + llm by 20.0 points"),
        ((-0.2, -0.3, -0.1, 0.001), "one + llm is better than two + llm by 20.0 points"),
        ((0.02, -0.1, 0.12, 0.7), "no difference could be shown (minimum detectable 10.0 points)"),
        ((0.02, -0.1, 0.12, None), "no difference could be shown (minimum detectable 10.0 points)"),
        (
            (0.09, 0.01, 0.17, 0.05),
            "no difference could be shown (minimum detectable 10.0 points); the interval",
        ),
        (
            (0.09, 0.0, 0.17, 0.001),
            "no difference could be shown (minimum detectable 10.0 points); McNemar's",
        ),
    ],
)
def test_a_difference_is_claimed_only_when_test_and_interval_show_it(
    values: tuple[float, float, float, float | None], said: str
) -> None:
    row = comparison(*values)
    assert verdict(row).startswith(said)
    assert is_shown(row) == ("better" in said)


def test_shared_costs_are_counted_once() -> None:
    spent = {
        "requests": 10,
        "tokens_in": None,
        "tokens_out": 5,
        "latency_s": 1.0,
        "retries": 0,
        "dollars": 0.5,
    }

    def cell(perceiver: str, instruction: str, reasoner: str) -> dict[str, Any]:
        stages = dict.fromkeys(("instruct", "perceive", "reason"), spent)
        names = {"perceiver": perceiver, "instruction": instruction, "reasoner": reasoner}
        return {"benchmark": "b", **names, "cost": stages}

    cells = [cell(p, i, r) for p in ("p1", "p2") for i in ("i1", "i2") for r in ("r1", "r2", "r3")]
    totals = {row["stage"]: row for row in cost_totals(cells)}
    assert [totals[stage]["requests"] for stage in ("instruct", "perceive", "reason")] == [20, 40, 120]
    assert totals["perceive"]["dollars"] == 2.0 and totals["perceive"]["tokens_in"] is None


def test_a_cut_off_last_row_is_left_out(tmp_path: Path) -> None:
    folder = small(tmp_path / "run")
    with (folder / "items.jsonl").open("a") as file:
        file.write(json.dumps({"id": "1"})[:-3])
    assert Page(drawn(folder)).open == []


def test_the_page_knows_every_cause_that_attribution_gives() -> None:
    assert tuple(prism_read.CAUSES) == attribution.CAUSES
