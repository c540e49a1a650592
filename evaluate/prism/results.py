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
from prismcap.evaluate.prism.attribution import attribute
from prismcap.evaluate.prism.cells import cell_of
from prismcap.evaluate.prism.costs import cell_costs
from prismcap.evaluate.prism.items import cell_items
from prismcap.evaluate.prism.pipeline import Pipeline
from prismcap.evaluate.prism.summary import summarise
from prismcap.evaluate.versions import versions

ITEMS, ATTRIBUTION, RESULTS, TABLE = "items.jsonl", "attribution.jsonl", "results.json", "results.csv"


def score_run(pipeline: Pipeline) -> dict[str, Any]:
    """Score every cell, write the four files and the thumbnails; returns what results.json holds.

    Raises ConfigError where an earlier stage is not done.
    """
    items = [row for cell in pipeline.cells for row in cell_items(pipeline, cell)]
    costs = {cell: cell_costs(pipeline, cell) for cell in pipeline.cells}
    names = list(dict.fromkeys(cell.benchmark for cell in pipeline.cells))
    benchmarks = {name: pipeline.questions(name) for name in names}
    results = {
        "about": {
            "name": pipeline.config.name,
            "measured_at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions(),
            "seed": pipeline.config.seed,
            "complete": all(row["status"] == "ok" for row in items),
        },
        "benchmarks": {
            name: {
                "num_questions": benchmark.num_questions,
                "checksum": benchmark.checksum,
                "categories": benchmark.categories,
            }
            for name, benchmark in benchmarks.items()
        },
        **summarise(items, costs, pipeline.config.seed),
    }
    _write_lines(pipeline.run_dir / ITEMS, items)
    _write_lines(pipeline.run_dir / ATTRIBUTION, attribute(items))
    replace_text(pipeline.run_dir / TABLE, results_csv(results["cells"]))
    replace_text(pipeline.run_dir / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


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
