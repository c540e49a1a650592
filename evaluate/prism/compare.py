"""Runs against each other, on the questions that both answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from prismcap.configs.errors import DataError
from prismcap.evaluate.prism.cells import NO_INSTRUCTION, Cell
from prismcap.evaluate.prism.comparisons import MAX_PAIRS, Side, compare_sides, differing_axis
from prismcap.evaluate.prism.finished import FinishedRun, read_finished


def compare_runs(folders: Sequence[Path], seed: int = 0) -> dict[str, Any]:
    """{runs, benchmarks, comparisons, left_out} of two or more scored run folders.

    Compared are cells of one name (benchmark, perceiver, instruction, reasoner) in every two runs; where two
    runs share none on a benchmark, cells that differ in one of the three. comparisons: rows of
    comparisons.compare_sides, whose a and b also name their `run`; the family of the correction is all that
    is compared on a benchmark. left_out: by benchmark, how many pairs beyond MAX_PAIRS were not compared.
    Raises as finished.read_finished, and DataError where no two runs share anything.
    """
    runs = read_finished(folders, at_least=2)
    result: dict[str, Any] = {
        "runs": [{"run": run.label, "folder": str(run.folder), **run.about} for run in runs],
        "benchmarks": {},
        "comparisons": [],
        "left_out": {},
    }
    for benchmark in dict.fromkeys(name for run in runs for name in run.checksums):
        pairs = [pair for a, b in combinations(runs, 2) for pair in _pairs(a, b, benchmark)]
        family = f"{benchmark}: {', '.join(run.label for run in runs)}"
        rows = compare_sides(benchmark, pairs[:MAX_PAIRS], family, seed)
        if rows:
            result["benchmarks"][benchmark] = next(
                run.checksums[benchmark] for run in runs if benchmark in run.checksums
            )
            result["comparisons"] += rows
            result["left_out"][benchmark] = max(0, len(pairs) - MAX_PAIRS)
    if not result["comparisons"]:
        raise DataError(
            f"{', '.join(str(folder) for folder in folders)}: no two of the runs have cells of one "
            "benchmark, with a question in common, that differ in at most one of perceiver, instruction "
            "and reasoner"
        )
    return result


def _pairs(a: FinishedRun, b: FinishedRun, benchmark: str) -> list[tuple[Side, Side]]:
    def side(run: FinishedRun, cell: Cell) -> Side:
        return Side({"run": run.label, **cell.as_dict()}, run.cells[cell])

    of_a, of_b = ([cell for cell in run.cells if cell.benchmark == benchmark] for run in (a, b))
    pairs = [(cell, cell) for cell in of_a if cell in of_b]
    if not pairs:
        pairs = [(one, other) for one in of_a for other in of_b if differing_axis(one, other)]
    return [(side(a, one), side(b, other)) for one, other in pairs]


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Two lines per comparison, in points: who with who, then the difference, its interval, n, p-values and
    what could have been found."""
    lines = []
    for row in comparisons:
        difference = row["difference"]
        lines.append(f"{row['benchmark']}: {_side(row['a'])} -> {_side(row['b'])}")
        lines.append(
            f"    {100 * difference['mean']:+.1f} points "
            f"({100 * difference['low']:+.1f} .. {100 * difference['high']:+.1f}), n = {difference['n']}, "
            f"right on one side alone {row['only_a']} and {row['only_b']}; McNemar p = "
            f"{row['mcnemar_p']:.3g}, corrected {row['p_holm']:.3g}; detectable from "
            f"{100 * row['minimum_detectable']:.1f} points"
        )
    return "\n".join(lines)


def _side(names: Mapping[str, str]) -> str:
    """'run/perceiver (instruction) + reasoner'."""
    told = names["instruction"]
    run = f"{names['run']}/" if "run" in names else ""
    instruction = "" if told == NO_INSTRUCTION else f" ({told})"
    return f"{run}{names['perceiver']}{instruction} + {names['reasoner']}"
