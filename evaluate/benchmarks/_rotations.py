"""Circular evaluation: a choice counts when it is answered in every rotation of its options (MMBench)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prismcap.evaluate.benchmarks._contract import LETTERS, Question

# VLMEvalKit's files that hold rotations already give them the index of the question plus multiples of this
INDEX_STEP = 1_000_000


def rotated(question: Question, by: int) -> Question:
    """The question with its options moved up by so many letters; rotation 0 has them in their order."""
    number = len(question.options)
    right = (LETTERS.index(question.answer) - by) % number
    return replace(
        question,
        id=f"{question.id}/r{by}",
        circle=question.id,
        options=(*question.options[by:], *question.options[:by]),
        answer=LETTERS[right],
    )


def circles_of_file(row_of: Mapping[str, int], option_keys: Sequence[int]) -> dict[int, str]:
    """Row -> circle, for the rows of a file's own rotations and the questions that they are made of.

    option_keys: by row, equal where the options are the same but for their order. Rows whose index merely is
    large are thereby told from rotations.
    """
    circles: dict[int, str] = {}
    for name, row in row_of.items():
        if not name.isdecimal() or int(name) < INDEX_STEP:
            continue
        original = str(int(name) % INDEX_STEP)
        first = row_of.get(original)
        if first is not None and option_keys[first] == option_keys[row] != 0:
            circles[row] = circles[first] = original
    return circles
