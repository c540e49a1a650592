"""Instruct, perceive, reason: what is asked, once, and what depends on what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.prism import PrismConfig
from prismcap.evaluate.prism.cells import Cell
from prismcap.evaluate.prism.instructions import INSTRUCTIONS
from prismcap.evaluate.prism.pipeline import Pipeline
from prismcap.evaluate.prism.run import run_dir_of, run_prism

Make = Callable[..., PrismConfig]
Asked = Callable[[str], list[str]]
ASKING = ("instruct", "perceive", "reason")
SPECIFIC = {
    "generic": {"key": "human1"},
    "specific": {"written_by": "reading"},
}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(config: PrismConfig, **arguments: Any) -> None:
    run_prism(config, ASKING, **arguments)


def replies(config: PrismConfig, cell: Cell) -> list[str | None]:
    pipeline = Pipeline(config, run_dir_of(config))
    return [None if entry is None else entry.answer.text for entry in pipeline.answers(cell).replies]


def test_a_description_is_made_once_per_picture_and_everything_is_known_after(
    make_config: Make, asked: Asked
) -> None:
    config = make_config()
    ask(config)
    assert len(asked("perceiver")) == 6  # pictures, of 12 questions
    assert len(asked("reasoner")) == 24  # with a description, and blind
    ask(config)
    assert asked("perceiver") == asked("reasoner") == []
    answers = replies(config, Cell("plain", "seeing", "generic", "reading"))
    assert answers[:4] == ["The answer is A. red"] * 2 + ["The answer is B. green"] * 2
    blind = replies(config, Cell("plain", "blind", "-", "reading"))
    assert set(blind) == {"I cannot tell from the description."}


@pytest.mark.parametrize(
    ("change", "described", "reasoned"),
    [
        ({"reasoner": {"weights": "2"}}, 0, 24),
        # all the same descriptions come back, so no reply depends on the change
        ({"perceiver": {"weights": "2"}}, 6, 0),
        ({"perceiver": {"blank": True}}, 6, 12),
        ({"benchmark": {"version": "other bytes"}}, 6, 0),
        ({"instructions": {"generic": {"key": "gpt1"}}}, 6, 0),
        ({"decoding": {"perceive": {"max_new_tokens": 9}}}, 6, 0),
        ({"decoding": {"reason": {"max_new_tokens": 9}}}, 0, 24),
        ({"decoding": {"instruct": {"max_new_tokens": 9}}}, 0, 0),
        ({"local": {"batch_size": 2}}, 0, 0),
        ({"prices": {"reading": {"tokens_in": 1, "tokens_out": 1}}}, 0, 0),
        ({"cells": [{"limit": 6}]}, 0, 0),
    ],
)
def test_a_change_asks_again_for_what_depends_on_it(
    make_config: Make, asked: Asked, change: dict[str, Any], described: int, reasoned: int
) -> None:
    ask(make_config())
    asked("perceiver"), asked("reasoner")
    ask(make_config(**change))
    assert (len(asked("perceiver")), len(asked("reasoner"))) == (described, reasoned)
    ask(make_config())
    assert asked("perceiver") == asked("reasoner") == [], "the former rows are still there"


def test_a_perceiver_that_looks_up_is_asked_for_every_question(make_config: Make, asked: Asked) -> None:
    ask(make_config(perceiver={"file": True}))
    assert len(asked("perceiver")) == 12


def test_a_limit_takes_the_first_questions(make_config: Make, asked: Asked) -> None:
    ask(make_config(cells=[{"limit": 5}]))
    assert (len(asked("perceiver")), len(asked("reasoner"))) == (3, 5)


def test_written_parts_reach_the_perceiver(make_config: Make, asked: Asked) -> None:
    config = make_config(instructions=SPECIFIC, cells=[{"perceivers": ["seeing"]}])
    ask(config)
    told = {line.split(" | ")[1] for line in asked("perceiver")}
    human1 = INSTRUCTIONS["human1"]
    assert told == {human1, f"{human1} Especially, pay attention to the colour of all the parts."}
    # each question has a prompt of its own, but equal ones are asked once: 2 texts of 6 pictures
    assert sum("Contents to observe" in line for line in asked("reasoner")) == 2
    ask(config)
    assert asked("reasoner") == []


def test_a_rejected_part_falls_back_and_says_why(make_config: Make, asked: Asked) -> None:
    config = make_config(instructions=SPECIFIC, reasoner={"part": "The picture is red."})
    ask(config)
    assert {line.split(" | ")[1] for line in asked("perceiver")} == {INSTRUCTIONS["human1"]}
    written = rows(run_dir_of(config) / "instruct/specific/plain.jsonl")
    assert {row["part"] for row in written} == {None}
    assert all("sentence" in row["fallback"] and row["text"] == "The picture is red." for row in written)


def test_a_failed_part_falls_back_and_is_retried_on_request(
    make_config: Make, asked: Asked, tmp_path: Path
) -> None:
    fails = tmp_path / "fails"
    fails.touch()
    config = make_config(instructions=SPECIFIC, reasoner={"fail_file": str(fails)})
    ask(config)
    written = rows(run_dir_of(config) / "instruct/specific/plain.jsonl")
    assert {row["status"] for row in written} == {"failed"}
    assert {row["fallback"] for row in written} == {"the request failed: no answer today"}
    fails.unlink()
    asked("perceiver"), asked("reasoner")
    ask(config)
    assert asked("perceiver") == asked("reasoner") == [], "a failure stands until a retry is asked for"
    ask(config, retry_failed=True)
    assert len(asked("perceiver")) == 6  # with the parts that are there now


def test_pinned_parts_are_kept_and_used_as_they_are(make_config: Make, asked: Asked, tmp_path: Path) -> None:
    pinned = tmp_path / "parts.jsonl"
    specific = {"specific": {"written_by": "reading", "file": str(pinned)}}
    pinned.write_text('{"benchmark": "plain", "id": "3", "part": "the corners"}\n')
    config = make_config(instructions=specific, cells=[{"perceivers": ["seeing"]}])
    ask(config)
    assert {row["id"] for row in rows(pinned)} == {str(number) for number in range(12)}
    told = [line for line in asked("perceiver") if line.startswith("3 ")]
    assert told and all(line.endswith("pay attention to the corners.") for line in told)
    asked("reasoner")
    # another writer changes nothing that is pinned
    other = make_config(reasoner={"part": "the sky"})
    ask(config.model_copy(update={"reasoners": other.reasoners}))
    assert asked("perceiver") == []
    assert not any("Contents to observe" in line for line in asked("reasoner"))


def test_end_to_end_asks_the_perceiver_the_question(make_config: Make, asked: Asked) -> None:
    config = make_config(cells=[{"reasoners": ["end_to_end"]}])
    ask(config)
    lines = asked("perceiver")
    assert len(lines) == 12
    assert all("Please select the correct answer" in line for line in lines)
    assert asked("reasoner") == []
    assert replies(config, Cell("plain", "seeing", "-", "end_to_end"))[0] == "It is all red."


def test_a_picture_that_cannot_be_read_fails_alone(make_config: Make, asked: Asked) -> None:
    config = make_config(benchmark={"unreadable": (2,)}, cells=[{"perceivers": ["seeing"]}])
    ask(config)
    assert len(asked("reasoner")) == 10  # there is nothing to reason on for the two questions
    assert replies(config, Cell("plain", "seeing", "generic", "reading"))[4:6] == [None, None]
    failed = [row for row in rows(run_dir_of(config) / "perceive/seeing/generic/plain.jsonl") if row["error"]]
    assert [row["error"] for row in failed] == ["picture 2: cannot be decoded"]


def test_an_answer_without_text_is_a_failure(make_config: Make) -> None:
    config = make_config(reasoner={"empty": True})
    ask(config)
    written = rows(run_dir_of(config) / "reason/reading/blind/-/plain.jsonl")
    assert {(row["status"], row["text"]) for row in written} == {("failed", None)}


def test_a_stage_says_what_it_needs(make_config: Make) -> None:
    config = make_config(instructions=SPECIFIC)
    with pytest.raises(ConfigError, match=r"12 of 12 answers are not there yet.*--stage instruct"):
        run_prism(config, ["perceive"])
    run_prism(config, ["instruct"])
    with pytest.raises(ConfigError, match="--stage perceive"):
        run_prism(config, ["reason"])
    run_prism(config, ["perceive"])
    run_prism(config, ["reason"])


def test_weights_of_one_component_are_freed_before_the_next(make_config: Make) -> None:
    perceivers = {
        name: {"name": "prism_fakes.perceiver", "weights": name} for name in ("one", "two", "three")
    }
    reasoners = {name: {"name": "prism_fakes.reasoner", "weights": name} for name in ("four", "five")}
    ask(make_config(perceivers=perceivers, reasoners=reasoners))
    import prism_fakes

    assert prism_fakes.most_loaded_at_once == [1]


def test_two_questions_of_one_id_are_refused(make_config: Make) -> None:
    with pytest.raises(DataError, match="two questions have the id '0'"):
        ask(make_config(benchmark={"same_ids": True}))


def test_a_training_run_is_not_overwritten(make_config: Make, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "fake"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: fake\nstages: {}\n")
    with pytest.raises(ConfigError, match="folder of a training run"):
        ask(make_config())
    assert (folder / "config.yaml").read_text() == "name: fake\nstages: {}\n"


def test_a_folder_that_cannot_be_made_is_told(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(DataError, match=r"runs/fake: the results cannot be written.*Make room"):
        ask(make_config())
