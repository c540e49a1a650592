"""Hand-written replies with what an honest reader extracts from each: tests/assets/golden/replies.jsonl."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.scoring.choice import extract_choice
from prismcap.evaluate.scoring.score import score_reply
from prismcap.evaluate.scoring.yes_no import extract_yes_no

FILE = Path(__file__).parents[2] / "assets" / "golden" / "replies.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def ask(row: dict[str, Any]) -> Question:
    answer = row["expected"] or ("A" if row["kind"] == "choice" else "yes")
    return Question(
        id=str(row["id"]),
        kind=row["kind"],
        text=row.get("question", "Which one?"),
        answer=answer,
        images=(),
        options=tuple(row["options"]),
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['id']}: {row['trap']}")
def test_each_reply_is_read_as_an_honest_reader_reads_it(row: dict[str, Any]) -> None:
    scored = score_reply(ask(row), row["reply"])
    assert (scored.extracted, scored.refused) == (row["expected"], row["refused"]), row["reply"]
    assert scored.right == (row["expected"] is not None)


def first_letter(reply: str, options: list[str]) -> str | None:
    """What many scripts do: the first capital that is an option's letter."""
    found = re.search(rf"\b[A-{chr(ord('A') + len(options) - 1)}]\b", reply)
    return found.group() if found else None


def test_a_naive_extractor_fails_much_of_the_set() -> None:
    choices = [row for row in ROWS if row["kind"] == "choice"]
    naive = [first_letter(row["reply"], row["options"]) for row in choices]
    wrong = [row for row, said in zip(choices, naive, strict=True) if said != row["expected"]]
    invented = [row for row, said in zip(choices, naive, strict=True) if said not in (None, row["expected"])]
    assert len(wrong) > len(choices) / 3
    # not only by finding nothing: it reports letters that were not chosen
    assert len(invented) > len(choices) / 8


def test_the_set_is_large_and_answers_are_spread() -> None:
    choices = [row for row in ROWS if row["kind"] == "choice"]
    assert len(choices) >= 220
    assert len({(row["reply"], tuple(row["options"])) for row in choices}) == len(choices)
    spread = Counter(row["expected"] for row in choices)
    assert min(spread[letter] for letter in (None, *"ABCD")) >= len(choices) / 12
    assert sum(row["refused"] for row in ROWS) >= 20


@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_forms_texts_and_boxes_do_not_depend_on_case(change: Any) -> None:
    """Of the set's replies that one of these rules decides; single letters in prose need their case."""
    rules = {"boxed", "only_text", "text", "letter_line"}
    changed = []
    for row in ROWS:
        if row["kind"] != "choice" or "think" in row["reply"].lower() or "\\" in row["reply"]:
            continue
        found = extract_choice(row["reply"], row["options"])
        if found.value and found.how in rules:
            said = extract_choice(change(row["reply"]), row["options"])
            if said.value != found.value:
                changed.append((row["id"], change(row["reply"]), said))
    assert not changed


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["kind"] == "yes_no"], ids=lambda row: str(row["id"])
)
def test_yes_no_words_do_not_depend_on_case(row: dict[str, Any]) -> None:
    if "\\" not in row["reply"]:
        assert extract_yes_no(row["reply"].upper(), row["question"]).value == row["expected"]
