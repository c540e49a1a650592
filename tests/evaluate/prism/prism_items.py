"""Rows of items.jsonl for tests."""

from __future__ import annotations

from typing import Any


def item(
    question: str = "1",
    perceiver: str = "ours",
    instruction: str = "generic",
    reasoner: str = "llm",
    *,
    right: bool = False,
    benchmark: str = "stars",
    **values: Any,
) -> dict[str, Any]:
    """A row of a question with four options; by default a proper answer, right or wrong."""
    row = {
        "benchmark": benchmark,
        "id": question,
        "cluster": f"picture {question}",
        "circle": "",
        "categories": {},
        "perceiver": perceiver,
        "instruction": instruction,
        "reasoner": reasoner,
        "question": f"Question {question}?",
        "options": ["red", "green", "blue", "black"],
        "answer": "A",
        "description": None if perceiver == "blind" or reasoner == "end_to_end" else "A red square.",
        "reply": "A" if right else "B",
        "status": "ok",
        "extracted": "A" if right else "B",
        "how": "letter",
        "right": right,
        "refused": False,
        "cut_off": False,
        "expected": float(right),
        "picture": None,
    }
    return row | values


REFUSED: dict[str, Any] = {"refused": True, "extracted": None, "how": "refusal", "expected": 0.25}
UNREAD: dict[str, Any] = {"extracted": None, "how": "unmatched"}
CUT_OFF: dict[str, Any] = {"cut_off": True, "extracted": None}
FAILED: dict[str, Any] = {"status": "failed", "extracted": None, "how": "failed", "reply": ""}
