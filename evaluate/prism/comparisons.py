"""Comparisons of cells on the questions both answered: paired, corrected, with what could have been found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismcap.evaluate.prism.cells import NO_INSTRUCTION, Cell, Row, cluster_of
from prismcap.evaluate.statistics.clustered import effective_n
from prismcap.evaluate.statistics.multiple import holm
from prismcap.evaluate.statistics.paired import discordance, mcnemar, paired_differences
from prismcap.evaluate.statistics.power import minimum_detectable_flags

MAX_PAIRS = 100  # per benchmark: more are read by nobody, and Holm's correction would hide what there is
_AXES = ("perceiver", "instruction", "reasoner")


@dataclass(frozen=True)
class Side:
    """One way of answering: how results name it, and its rows of items.jsonl by question."""

    names: Mapping[str, str]
    rows: Mapping[str, Row]


def differing_axis(a: Cell, b: Cell) -> str | None:
    """The one of perceiver, instruction, reasoner in which two cells of a benchmark differ; None if they
    differ in none or in several. A cell without an instruction (blind, end to end) agrees with any."""
    if a.benchmark != b.benchmark:
        return None
    axes = [axis for axis in _AXES if getattr(a, axis) != getattr(b, axis)]
    if NO_INSTRUCTION in (a.instruction, b.instruction):
        axes = [axis for axis in axes if axis != "instruction"]
    return axes[0] if len(axes) == 1 else None


def pairs_of(cells: Sequence[Cell], most: int = MAX_PAIRS) -> tuple[list[tuple[Cell, Cell]], int]:
    """(pairs of one benchmark's cells that differ in one axis, how many more there are).

    Where there are more than `most`, first those that compare neither side with the first name of their axis
    are left out (the file's first perceiver, instruction and reasoner are its baselines), then the last.
    What is compared never depends on the answers.
    """
    first = {axis: next((_name(cell, axis) for cell in cells if _name(cell, axis)), "") for axis in _AXES}
    pairs = []
    for a, b in combinations(cells, 2):
        axis = differing_axis(a, b)
        if axis is not None:
            pairs.append((a, b, first[axis] in (_name(a, axis), _name(b, axis))))
    kept = pairs if len(pairs) <= most else [pair for pair in pairs if pair[2]][:most]
    return [(a, b) for a, b, _ in kept], len(pairs) - len(kept)


def _name(cell: Cell, axis: str) -> str:
    """The name on an axis; empty where it is no choice of the file (blind, end to end)."""
    own = not (cell.is_blind and axis == "perceiver") and not (cell.is_end_to_end and axis == "reasoner")
    name = str(getattr(cell, axis))
    return name if own and name != NO_INSTRUCTION else ""


def compare_sides(
    benchmark: str, pairs: Sequence[tuple[Side, Side]], family: str, seed: int
) -> list[dict[str, Any]]:
    """A row per pair with a question in common, as results.json keeps them: {benchmark, family, a, b,
    difference, only_a, only_b, mcnemar_p, p_holm, minimum_detectable}.

    difference: of the rates right, b - a, on the common questions, resampled by picture; only_a, only_b: of
    these, right on one side alone. mcnemar_p: by whole pictures where they repeat; p_holm: corrected for all
    pairs given, which are the family. minimum_detectable: the difference that a test of this size finds with
    80% power at the observed discordance, uncorrected.
    """
    pairs = [(a, b) for a, b in pairs if a.rows.keys() & b.rows.keys()]
    if not pairs:
        return []
    clusters = {
        question: cluster_of(row) for pair in pairs for side in pair for question, row in side.rows.items()
    }
    right_a, in_a = _matrix([a for a, _ in pairs], list(clusters))
    right_b, in_b = _matrix([b for _, b in pairs], list(clusters))
    common = in_a & in_b
    names = np.asarray(list(clusters.values()), dtype=object)
    differences = paired_differences(right_a, right_b, common, list(names), seed)
    rows: list[dict[str, Any]] = []
    for column, ((a, b), difference) in enumerate(zip(pairs, differences, strict=True)):
        here = common[:, column]
        one, other = right_a[here, column].tolist(), right_b[here, column].tolist()
        of = names[here].tolist()
        changes = (right_b - right_a)[here, column]
        informative = min(float(len(one)), effective_n(changes.tolist(), of))
        rows.append(
            {
                "benchmark": benchmark,
                "family": family,
                "a": dict(a.names),
                "b": dict(b.names),
                "difference": difference.as_dict(),
                "only_a": int((changes < 0).sum()),
                "only_b": int((changes > 0).sum()),
                "mcnemar_p": mcnemar(one, other, of),
                "minimum_detectable": round(
                    minimum_detectable_flags(informative, discordance(one, other)), 6
                ),
            }
        )
    for row, p in zip(rows, holm([row["mcnemar_p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def _matrix(sides: Sequence[Side], questions: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(right, answered at all), each [questions, sides]."""
    right = np.zeros((len(questions), len(sides)))
    answered = np.zeros(right.shape, dtype=bool)
    for column, side in enumerate(sides):
        for position, question in enumerate(questions):
            row = side.rows.get(question)
            if row is not None:
                answered[position, column] = True
                right[position, column] = bool(row["right"])
    return right, answered
