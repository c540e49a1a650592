"""A Prism run folder as the report sees it: results.json, items.jsonl and attribution.jsonl if there.

Only files are read: the page can be drawn on a machine that has the folder and nothing else of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.evaluate.report.read import Record, ReportError, read_lines, read_object, require_keys

RESULTS, TABLE, ITEMS, ATTRIBUTION = "results.json", "results.csv", "items.jsonl", "attribution.jsonl"
NO_INSTRUCTION = "-"  # of blind and end-to-end cells
CELL = ("benchmark", "perceiver", "instruction", "reasoner")
# stage -> what tells its answers apart
_TOLD_BY = {
    "instruct": ("benchmark", "instruction"),
    "perceive": ("benchmark", "instruction", "perceiver"),
    "reason": ("benchmark", "instruction", "perceiver", "reasoner"),
}
ITEM_KEYS = (*CELL, "id", "question", "options", "answer", "description", "reply", "how", "right", "refused")
# in the order of the stacked bar; meanings as the page explains them
CAUSES = {
    "right": "right, and the reasoner is not known to be right blind",
    "guessed_blind": "right, but the reasoner is right without any description too",
    "perception_lost": "wrong; right from a reference, end to end or told otherwise: not put into words",
    "reasoning_lost": "wrong even from a description that is known to be right",
    "refused": "the reasoner said that it cannot tell",
    "extraction_failed": "no answer could be read out of the reply",
    "cut_off": "wrong, and the reply ended at its token limit",
    "failed": "a request failed; nothing was answered",
    "unexplained": "wrong, and the run's other cells do not tell why",
}
SCORE_AGAIN = "Run `prismcap prism run` on this run's config again: its stage score writes the file."
CellKey = tuple[str, ...]


@dataclass(frozen=True)
class PrismFiles:
    """What a Prism run folder holds. `label`: how the page names the run.

    left_out: benchmark -> pairs of cells that were not compared. causes: (cell, id) -> cause.
    """

    folder: Path
    label: str
    about: Record
    benchmarks: dict[str, Record]
    cells: tuple[Record, ...]
    comparisons: tuple[Record, ...]
    attribution: tuple[Record, ...]
    length_curve: tuple[Record, ...]
    left_out: dict[str, int]
    items: tuple[Record, ...]
    causes: dict[tuple[CellKey, str], str]

    @property
    def complete(self) -> bool:
        return bool(self.about.get("complete", False))

    def cells_of(self, benchmark: str) -> list[Record]:
        return [cell for cell in self.cells if cell["benchmark"] == benchmark]

    def naming_rows(self) -> list[Record]:
        """Everything of results.json that names a cell."""
        sides = [row[side] for row in self.comparisons for side in ("a", "b")]
        return [*self.cells, *self.attribution, *self.length_curve, *sides]


def cell_key(row: Mapping[str, Any]) -> CellKey:
    return tuple(str(row[name]) for name in CELL)


def work_key(cell: Mapping[str, Any], stage: str) -> tuple[str, ...]:
    """What a stage of the cell asked for, the same in every cell that shares the answers: a description is
    shared by all reasoners, a written instruction by all perceivers too."""
    return (stage, *(str(cell[name]) for name in _TOLD_BY[stage]))


def cell_name(row: Mapping[str, Any]) -> str:
    """'captioner + llm', after the run where the row names one."""
    run = f"{row['run']}: " if "run" in row else ""
    return f"{run}{row['who']} + {row['reasoner']}"


def name_perceivers(runs: Sequence[PrismFiles], between_runs: Sequence[Record] = ()) -> None:
    """Give every row that names a cell `who`: its perceiver, with the instruction where there are several."""
    rows = [row for run in runs for row in run.naming_rows()]
    rows += [row[side] for row in between_runs for side in ("a", "b")]
    several = len({row["instruction"] for row in rows} - {NO_INSTRUCTION}) > 1
    for row in rows:
        told = f" ({row['instruction']})" if several and row["instruction"] != NO_INSTRUCTION else ""
        row["who"] = f"{row['perceiver']}{told}"


def read_prism(folder: Path, label: str) -> PrismFiles:
    """Read a run folder. Raises ReportError when it is none, or when a file in it is damaged."""
    results = _results(folder)
    attribution = tuple(results.get("attribution") or ())
    items = _items(folder / ITEMS)
    causes = _causes(folder / ATTRIBUTION)
    _check_counts(folder, attribution, causes)
    return PrismFiles(
        folder=folder,
        label=label,
        about=results["about"],
        benchmarks=results["benchmarks"],
        cells=tuple(results["cells"]),
        comparisons=tuple(results.get("comparisons") or ()),
        attribution=attribution,
        length_curve=tuple(results.get("length_curve") or ()),
        left_out=results.get("comparisons_left_out") or {},
        items=items,
        causes=causes,
    )


def _results(folder: Path) -> Record:
    path = folder / RESULTS
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder. Expected a run folder of `prismcap prism run CONFIG`.")
    if not path.is_file():
        hint = ""
        if (folder / "log.jsonl").is_file():
            hint = f" {folder} looks like a run of prismcap train: `prismcap report {folder}` draws it."
        raise ReportError(
            f"{folder}: no Prism run with results: {RESULTS} is missing. `prismcap prism run CONFIG` writes "
            f"it in its stage score.{hint}"
        )
    results = read_object(path, "written by prismcap prism run", SCORE_AGAIN)
    for key, kind in (("about", dict), ("benchmarks", dict), ("cells", list)):
        if not isinstance(results.get(key), kind):
            raise ReportError(f"{path}: key {key!r} is missing or is no {kind.__name__}. {SCORE_AGAIN}")
    for number, cell in enumerate(results["cells"]):
        absent = [key for key in (*CELL, "n", "micro") if key not in cell]
        if absent:
            raise ReportError(f"{path}: cells[{number}] has no key {absent[0]!r}. {SCORE_AGAIN}")
    return results


def _items(path: Path) -> tuple[Record, ...]:
    if not path.exists():
        return ()
    records = read_lines(path, "written by prismcap prism run")
    require_keys(records, ITEM_KEYS, f"{path}, row", f". {SCORE_AGAIN}")
    return tuple(records)


def _causes(path: Path) -> dict[tuple[CellKey, str], str]:
    if not path.exists():
        return {}
    causes = {}
    records = read_lines(path, "written by prismcap prism run")
    require_keys(records, (*CELL, "id", "cause"), f"{path}, row", f". {SCORE_AGAIN}")
    for number, record in enumerate(records, start=1):
        if record["cause"] not in CAUSES:
            raise ReportError(
                f"{path}, row {number}: unknown cause {record['cause']!r}. Known: {', '.join(CAUSES)}"
            )
        causes[cell_key(record), str(record["id"])] = str(record["cause"])
    return causes


def _check_counts(
    folder: Path, attribution: tuple[Record, ...], causes: Mapping[tuple[CellKey, str], str]
) -> None:
    """The causes of a cell add up to its items, and results.json counts what attribution.jsonl lists."""
    listed = Counter((cell, cause) for (cell, _), cause in causes.items())
    for row in attribution:
        counts, n, cell = row["causes"], row["n"], cell_key(row)
        unknown = [cause for cause in counts if cause not in CAUSES]
        if unknown or sum(counts.values()) != n:
            raise ReportError(
                f"{folder / RESULTS}: attribution of {' / '.join(cell)}: "
                + (f"unknown cause {unknown[0]!r}" if unknown else f"{sum(counts.values())} causes, n = {n}")
                + f". {SCORE_AGAIN}"
            )
        for cause, count in counts.items() if causes else ():
            if listed[cell, cause] != count:
                raise ReportError(
                    f"{folder / ATTRIBUTION}: {listed[cell, cause]} items of {' / '.join(cell)} are {cause}, "
                    f"{RESULTS} counts {count}: the files are of two scorings. {SCORE_AGAIN}"
                )
