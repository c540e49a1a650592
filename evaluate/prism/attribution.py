"""What each answer was lost to: perception, reasoning, or the machinery around them.

Source of the idea: Prism, arXiv 2406.14544, section 3: fix one side and vary the other. Per item it is read
off the other answers to the same question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, get_args

from prismcap.configs.schema.prism import BLIND, END_TO_END, PrismConfig
from prismcap.evaluate.prism.cells import NO_INSTRUCTION, Cell, Row, by_cell, cell_of

Cause = Literal[
    "right",
    "guessed_blind",
    "perception_lost",
    "reasoning_lost",
    "refused",
    "extraction_failed",
    "cut_off",
    "failed",
    "unexplained",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)
REFERENCE = "reference"  # the perceiver that hands over the benchmark's own description


def reference_perceivers(config: PrismConfig) -> tuple[str, ...]:
    """Names of the config's perceivers whose descriptions are known to be right."""
    return tuple(name for name, component in config.perceivers.items() if component.name == REFERENCE)


def attribute(items: Iterable[Row], references: Collection[str] = (REFERENCE,)) -> list[dict[str, Any]]:
    """A row {benchmark, id, perceiver, instruction, reasoner, cause} for every item of every cell that has a
    description (neither blind nor end to end). items: rows of items.jsonl, all cells of the run together.
    references: perceivers whose descriptions are known to be right.

    The first line that holds decides; "the reasoner" is the cell's, always on the same question:

    | the answer | and | cause |
    |---|---|---|
    | failed, or its description did | | failed |
    | is right | the reasoner is right blind | guessed_blind |
    | is right | | right |
    | is wrong | was cut off at the token limit | cut_off |
    | is wrong | is a refusal | refused |
    | is wrong | holds no answer that could be read | extraction_failed |
    | is wrong | the description is a reference | reasoning_lost |
    | is wrong | the reasoner is right from a reference | perception_lost |
    | is wrong | the reasoner gives a wrong answer from a reference | reasoning_lost |
    | is wrong | the perceiver is right end to end | perception_lost |
    | is wrong | the reasoner is right from this perceiver told otherwise | perception_lost |
    | is wrong | | unexplained |

    A reply from a reference that failed, was cut off, refused or could not be read says nothing, nor does a
    wrong one end to end. The two lines after it take the answer for seen but not put into words, which is
    weaker evidence: the other answer may be a lucky guess. Raises DataError for an item that occurs twice.
    """
    cells = by_cell(items)
    causes = []
    for cell, rows in cells.items():
        if cell.is_blind or cell.is_end_to_end:
            continue
        blind = cells.get(Cell(cell.benchmark, BLIND, NO_INSTRUCTION, cell.reasoner), {})
        from_reference, otherwise = _other_answers(cell, cells, references)
        for question, row in rows.items():
            cause = _cause(
                row,
                right_blind=_is_right(blind.get(question)),
                is_reference=cell.perceiver in references,
                from_reference=[found[question] for found in from_reference if question in found],
                right_otherwise=any(_is_right(found.get(question)) for found in otherwise),
            )
            causes.append({"benchmark": cell.benchmark, "id": question, **_names(cell), "cause": cause})
    return causes


def count_causes(causes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Totals per cell for results.json: {benchmark, perceiver, instruction, reasoner, causes: {cause: count},
    n}, every cause with its count, n their sum."""
    totals: dict[Cell, dict[str, int]] = {}
    for row in causes:
        totals.setdefault(cell_of(row), dict.fromkeys(CAUSES, 0))[row["cause"]] += 1
    return [
        {**cell.as_dict(), "causes": counts, "n": sum(counts.values())} for cell, counts in totals.items()
    ]


def _other_answers(
    cell: Cell, cells: Mapping[Cell, Mapping[str, Row]], references: Collection[str]
) -> tuple[list[Mapping[str, Row]], list[Mapping[str, Row]]]:
    """(of the same reasoner from references, of the same perceiver end to end or told otherwise)."""
    from_reference, otherwise = [], []
    for other, rows in cells.items():
        if other.benchmark != cell.benchmark or other == cell:
            continue
        if other.perceiver in references and other.reasoner == cell.reasoner:
            from_reference.append(rows)
        elif other.perceiver == cell.perceiver and other.reasoner in (cell.reasoner, END_TO_END):
            otherwise.append(rows)
    return from_reference, otherwise


def _cause(
    row: Row, right_blind: bool, is_reference: bool, from_reference: list[Row], right_otherwise: bool
) -> Cause:
    if row["status"] == "failed":
        return "failed"
    if row["right"]:
        return "guessed_blind" if right_blind else "right"
    if row["cut_off"]:
        return "cut_off"
    if row["refused"]:
        return "refused"
    if row["extracted"] is None:
        return "extraction_failed"
    if is_reference:
        return "reasoning_lost"
    if any(_is_right(other) for other in from_reference):
        return "perception_lost"
    if any(_is_wrong_answer(other) for other in from_reference):
        return "reasoning_lost"
    return "perception_lost" if right_otherwise else "unexplained"


def _is_right(row: Row | None) -> bool:
    return row is not None and row["status"] == "ok" and bool(row["right"])


def _is_wrong_answer(row: Row) -> bool:
    return (
        row["status"] == "ok"
        and not (row["right"] or row["refused"] or row["cut_off"])
        and row["extracted"] is not None
    )


def _names(cell: Cell) -> dict[str, str]:
    return {"perceiver": cell.perceiver, "instruction": cell.instruction, "reasoner": cell.reasoner}
