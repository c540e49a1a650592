"""items.jsonl, attribution.jsonl, results.json and results.csv of a Prism run: each whole, or as it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prismcap.configs.files import replace_text
from prismcap.evaluate.prism.attribution import attribute, reference_perceivers
from prismcap.evaluate.prism.cells import cell_of
from prismcap.evaluate.prism.cost import CostStage, price_of, total_cost
from prismcap.evaluate.prism.items import cell_items
from prismcap.evaluate.prism.judging import RunJudge
from prismcap.evaluate.prism.pipeline import CellAnswers, Pipeline
from prismcap.evaluate.prism.store import Entry, Store
from prismcap.evaluate.prism.summary import summarise
from prismcap.evaluate.versions import versions

ITEMS, ATTRIBUTION, RESULTS, TABLE = "items.jsonl", "attribution.jsonl", "results.json", "results.csv"


def score_run(pipeline: Pipeline) -> dict[str, Any]:
    """Score every cell, write the four files and the thumbnails; returns what results.json holds.

    Raises ConfigError where an earlier stage is not done.
    """
    name = pipeline.config.judge
    judge = None if name is None else RunJudge(pipeline, name)
    answers = [pipeline.answers(cell) for cell in pipeline.cells]
    items = [row for of_cell in answers for row in cell_items(pipeline, of_cell, judge)]
    references = reference_perceivers(pipeline.config)
    costs = {of_cell.cell: cell_costs(pipeline, of_cell) for of_cell in answers}
    names = list(dict.fromkeys(cell.benchmark for cell in pipeline.cells))
    benchmarks = {name: pipeline.questions(name) for name in names}
    results = {
        "about": {
            "name": pipeline.config.name,
            "measured_at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions(),
            "seed": pipeline.config.seed,
            "complete": all(row["status"] == "ok" for row in items),
            **({} if judge is None else {"judge": judge.about()}),
        },
        "benchmarks": {
            name: {
                "num_questions": benchmark.num_questions,
                "checksum": benchmark.checksum,
                "categories": benchmark.categories,
            }
            for name, benchmark in benchmarks.items()
        },
        **summarise(items, costs, pipeline.config.seed, references),
    }
    _write_lines(pipeline.run_dir / ITEMS, items)
    _write_lines(pipeline.run_dir / ATTRIBUTION, attribute(items, references))
    replace_text(pipeline.run_dir / TABLE, results_csv(results["cells"]))
    replace_text(pipeline.run_dir / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def cell_costs(pipeline: Pipeline, answers: CellAnswers) -> dict[str, dict[str, Any]]:
    """stage -> totals (see total_cost), of the stages that the cell went through. An answer that several
    questions share counts once, in each cell that uses it."""
    cell = answers.cell
    rows: dict[CostStage, Iterable[Entry | None]] = {}
    if not cell.is_blind and not cell.is_end_to_end:
        unit = cell.instruction, cell.benchmark
        if pipeline.instruction(unit).written_by is not None:
            asked = {one.id for one in pipeline.questions(cell.benchmark).first(pipeline.cells[cell])}
            # not by today's keys: what has been pinned since was paid for as well
            written = {entry.id: entry for entry in Store(pipeline.instruct_path(unit)) if entry.id in asked}
            rows["instruct"] = written.values()
        rows["perceive"] = answers.descriptions
    rows["reason"] = answers.replies
    return {
        stage: total_cost(_distinct(entries), price_of(pipeline.config, cell, stage))
        for stage, entries in rows.items()
    }


def _distinct(entries: Iterable[Entry | None]) -> list[dict[str, Any]]:
    by_key = {entry.key: entry for entry in entries if entry is not None}
    return [entry.as_row() for entry in by_key.values()]


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def results_csv(cells: Sequence[Mapping[str, Any]]) -> str:
    """A row per cell: names, rates with their intervals, macro means and ability rates as columns."""
    rows = [_flat(cell) for cell in cells]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {**cell_of(cell).as_dict(), "n": cell["n"]}
    for key, value in cell.items():
        if key not in row:
            _flatten(row, key, value)
    return row


def _flatten(row: dict[str, Any], name: str, value: Any) -> None:
    """Mappings become columns named by their path, `by.category.count.rate`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(row, f"{name}.{key}", inner)
    else:
        row[name] = "" if value is None else value
