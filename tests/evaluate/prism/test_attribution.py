"""Every line of the decision table, and that every item has exactly one cause."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prism_items import CUT_OFF, FAILED, REFUSED, UNREAD, item

from prismcap.configs.errors import DataError
from prismcap.configs.schema.prism import PrismConfig
from prismcap.evaluate.prism.attribution import CAUSES, attribute, count_causes, reference_perceivers
from prismcap.evaluate.prism.cells import by_cell


def cause_of(row: dict[str, Any], *others: dict[str, Any]) -> str:
    """The cause of the first row, given the others."""
    keys = ("benchmark", "id", "perceiver", "instruction", "reasoner")
    (found,) = [
        cause["cause"] for cause in attribute([row, *others]) if all(cause[key] == row[key] for key in keys)
    ]
    return str(found)


def blind(**values: Any) -> dict[str, Any]:
    return item(perceiver="blind", instruction="-", **values)


def reference(**values: Any) -> dict[str, Any]:
    return item(perceiver="reference", **values)


def end_to_end(**values: Any) -> dict[str, Any]:
    return item(**{"instruction": "-", "reasoner": "end_to_end"} | values)


HELP = [blind(right=True), reference(right=True), end_to_end(right=True)]


@pytest.mark.parametrize(
    ("row", "others", "cause"),
    [
        (item(right=True), [], "right"),
        (item(right=True), [blind()], "right"),
        (item(right=True), [blind(right=True)], "guessed_blind"),
        (item(right=True), [blind(right=True) | FAILED], "right"),  # a failed request has no answer
        (item(right=True, cut_off=True), [], "right"),
        (item() | FAILED, HELP, "failed"),
        (item() | CUT_OFF, HELP, "cut_off"),
        (item() | CUT_OFF | REFUSED, HELP, "cut_off"),
        (item() | REFUSED, HELP, "refused"),
        (item() | UNREAD, HELP, "extraction_failed"),
        (item(), [reference(right=True)], "perception_lost"),
        (item(), [reference()], "reasoning_lost"),
        (item(), [reference(instruction="cot", right=True)], "perception_lost"),
        (item(), [reference(), end_to_end(right=True)], "reasoning_lost"),
        (reference(), [reference(instruction="cot", right=True)], "reasoning_lost"),
        (reference(right=True), [], "right"),
        (item(), [reference() | REFUSED], "unexplained"),
        (item(), [reference() | UNREAD], "unexplained"),
        (item(), [reference() | CUT_OFF], "unexplained"),
        (item(), [reference(cut_off=True)], "unexplained"),  # though a letter could be read
        (item(), [reference(refused=True)], "unexplained"),
        (item(), [reference() | FAILED], "unexplained"),
        (item(), [reference() | FAILED, end_to_end(right=True)], "perception_lost"),
        (item(), [end_to_end(right=True)], "perception_lost"),
        (item(), [end_to_end()], "unexplained"),
        (item(), [item(instruction="cot", right=True)], "perception_lost"),
        (item(), [item(instruction="cot")], "unexplained"),
        (item(), [blind(right=True)], "unexplained"),
        (item(), [], "unexplained"),
        # answers to other questions, of other reasoners and on other benchmarks say nothing
        (item(), [reference(reasoner="keyword", right=True)], "unexplained"),
        (item(), [item(perceiver="theirs", right=True)], "unexplained"),
        (item(), [reference(question="2", right=True)], "unexplained"),
        (item(), [reference(benchmark="scenes", right=True)], "unexplained"),
        (item(right=True), [blind(reasoner="keyword", right=True)], "right"),
        (
            item(),
            [item(perceiver="theirs", instruction="-", reasoner="end_to_end", right=True)],
            "unexplained",
        ),
    ],
)
def test_the_decision_table(row: dict[str, Any], others: list[dict[str, Any]], cause: str) -> None:
    assert cause_of(row, *others) == cause


def test_which_perceivers_are_references_is_the_configs_to_say() -> None:
    rows = [item(), item(perceiver="graph", right=True)]
    causes = {row["perceiver"]: row["cause"] for row in attribute(rows, references=("graph",))}
    assert causes == {"ours": "perception_lost", "graph": "right"}
    config = PrismConfig.model_validate(
        {
            "name": "p",
            "benchmarks": {"scenes": {"name": "scenes"}},
            "perceivers": {"ours": {"name": "captioner"}, "graph": {"name": "reference"}},
            "reasoners": {"llm": {"name": "hf"}},
        }
    )
    assert reference_perceivers(config) == ("graph",)


CELLS = [
    ("ours", "generic", "llm"),
    ("ours", "cot", "llm"),
    ("ours", "generic", "keyword"),
    ("reference", "generic", "llm"),
    ("blind", "-", "llm"),
    ("blind", "-", "keyword"),
    ("ours", "-", "end_to_end"),
]
STATES: list[dict[str, Any]] = [{"right": True}, {"right": False}, REFUSED, UNREAD, CUT_OFF, FAILED]


@given(
    st.lists(
        st.tuples(st.sampled_from(CELLS), st.sampled_from("1234"), st.sampled_from(STATES)),
        unique_by=lambda row: row[:2],
        max_size=28,
    )
)
def test_every_described_item_has_exactly_one_cause(
    rows: list[tuple[tuple[str, str, str], str, dict[str, Any]]],
) -> None:
    items = []
    for cell, question, state in rows:
        items.append(item(question, *cell, right=state.get("right", False)) | state)
    described = [row for row in items if row["perceiver"] != "blind" and row["reasoner"] != "end_to_end"]
    causes = attribute(items)
    keys = ("benchmark", "perceiver", "instruction", "reasoner", "id")
    identify = Counter(tuple(cause[key] for key in keys) for cause in causes)
    assert identify == Counter(tuple(row[key] for key in keys) for row in described)
    assert all(cause["cause"] in CAUSES for cause in causes)
    totals = count_causes(causes)
    assert sum(total["n"] for total in totals) == len(described)
    for total in totals:
        in_cell = [row for row in described if all(row[key] == total[key] for key in keys[:4])]
        assert sum(total["causes"].values()) == total["n"] == len(in_cell)
        right = sum(row["right"] for row in in_cell)
        assert total["causes"]["right"] + total["causes"]["guessed_blind"] == right


def test_a_question_twice_in_a_cell_is_refused() -> None:
    with pytest.raises(DataError, match=r"'7' of stars / ours / generic / llm occurs twice"):
        by_cell([item("7"), item("7")])
