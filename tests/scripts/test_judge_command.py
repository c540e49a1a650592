"""`prismcap judge` on the command line: a run, a page, ratings, and what is wrong with them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.append(str(Path(__file__).parents[1] / "evaluate/clients"))  # faulty_server
sys.path.append(str(Path(__file__).parents[1] / "evaluate/judged"))  # judged_files

from faulty_server import FaultyServer, faulty
from judged_files import (
    REFERENCES,
    judge_of,
    owl_files,
    pair_files,
    pair_reply,
    write_answers,
    write_json,
    write_pictures,
)

from prismcap.scripts.cli import cli


def prismcap(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty(judge_of(pair_reply(bonus=1))) as server:
        yield server


def write(folder: Path, protocol: dict[str, Any], answers: dict[str, str], **keys: Any) -> Path:
    values = {"name": "bench", "output_dir": str(folder / "runs"), "protocol": protocol, "answers": answers}
    write_json(folder / "judged.yaml", {**values, **keys})  # JSON is YAML
    return folder / "judged.yaml"


@pytest.fixture
def config(server: FaultyServer, tmp_path: Path) -> Path:
    answers = {
        "ours": write_answers(tmp_path / "ours.jsonl", {**REFERENCES, 0: 9}),
        "theirs": write_answers(tmp_path / "theirs.jsonl", {**REFERENCES, 1: 1}),
    }
    judge = {"name": "openai", "url": server.url, "model": "m"}
    return write(tmp_path, pair_files(tmp_path), answers, judge=judge)


def test_a_run_prints_its_table_and_writes_its_files(
    config: Path, server: FaultyServer, tmp_path: Path
) -> None:
    done = prismcap("judge", "run", config)
    assert done.exit_code == 0, done.output
    for words in (
        "category.conv",
        "position: the first place earns +1.00",
        "overall: ours -> theirs",
        "Results:",
    ):
        assert words in done.output
    run = tmp_path / "runs" / "bench"
    for name in ("config.yaml", "items.jsonl", "results.json", "results.csv", "judge.jsonl"):
        assert (run / name).is_file(), name
    num_asked = len(server.asked)
    again = prismcap("judge", "run", config, "--retry-failed", "seed=4")
    assert again.exit_code == 0 and len(server.asked) == num_asked
    assert json.loads((run / "results.json").read_text())["about"]["seed"] == 4


def test_a_run_of_ranks_scores_once(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert prismcap("judge", "run", config).exit_code == 0
    run = tmp_path / "runs" / "bench"
    assert not (run / "results.json").exists() and (run / "judge.jsonl").is_file()


def test_a_page_is_drawn_and_its_ratings_are_scored(tmp_path: Path) -> None:
    answers = {"ours": write_answers(tmp_path / "ours.jsonl", {1: 0, 2: 1, 3: 2})}
    images = write_pictures(tmp_path / "images", ["1.jpg", "2.jpg"])
    config = write(tmp_path, owl_files(tmp_path, contexts=False), answers, images=images)
    out = tmp_path / "page.html"
    done = prismcap("judge", "page", config, "--out", out)
    assert done.exit_code == 0 and f"Page: {out}" in done.output
    found = re.search(r'id="rating-data">(.*?)</script>', out.read_text(), re.S)
    assert found is not None
    data = json.loads(found[1])
    for rater, grades in (("Ada", "ABD"), ("Bo", "ABC")):
        ratings = [
            {"question_id": one["id"], "answer": one["answers"][0][0], "grade": grade}
            for one, grade in zip(data["questions"], grades, strict=True)
        ]
        values = {"format": data["format"], "page": data["page"], "rater": rater, "ratings": ratings}
        write_json(tmp_path / f"{rater}.json", values)
    scored = prismcap("judge", "ratings", config, tmp_path / "Ada.json", tmp_path / "Bo.json")
    assert scored.exit_code == 0, scored.output
    assert re.search(r"^ours +overall +66\.7 ", scored.output, re.M), "A A, B B and D C: 4 of 6"
    assert "raters together: 66.7 % equal" in scored.output
    assert (tmp_path / "runs" / "bench" / "ratings.json").is_file()


def test_configs_of_judged_evaluations_are_shown_and_validated(config: Path) -> None:
    shown = prismcap("config", "show", config, "repeats=2", "decoding.temperature=0.5")
    assert shown.exit_code == 0 and "repeats: 2" in shown.output and "protocol:" in shown.output
    assert prismcap("config", "validate", config).exit_code == 0
    assert "trains nothing" in str(prismcap("config", "show", config, "--deepspeed").exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["judge", "rum"], "Did you mean 'run'"),
        (["judge", "run", "nowhere.yaml"], "no config 'nowhere.yaml'"),
        (["judge", "run", "demo/scenes"], "it has `stages`"),
        (["judge", "run", "demo/prism", "--device", "cpu"], "it has `perceivers`"),
        (["judge", "page", "demo/prism"], "--out"),
        (
            ["judge", "page", "demo/prism", "--out", "nowhere/page.html"],
            "there is no folder nowhere; make it",
        ),
        (["judge", "ratings", "demo/prism"], "RATINGS"),
    ],
)
def test_wrong_arguments_are_told_clearly(
    arguments: list[str], says: str, refused: Callable[[list[str]], str]
) -> None:
    assert says in refused(arguments)
