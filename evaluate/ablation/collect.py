"""An ablation's folder in, table.csv, table.arrow and results.json out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from prismcap.configs.errors import DataError
from prismcap.configs.files import replace_text
from prismcap.evaluate.ablation.effects import effects_of
from prismcap.evaluate.ablation.levels import axes_of, levels_of
from prismcap.evaluate.ablation.outcomes import record_of
from prismcap.evaluate.ablation.read import STATES, Ablation, Cell, read_ablation
from prismcap.evaluate.ablation.table import table_rows, write_tables
from prismcap.evaluate.report.read import Record

RESULTS = "results.json"


def collect(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Read the cells that are done, write the three files into the folder; returns what results.json holds.

    {about, axes, cells, effects, by_level}; cells that are not done are there without figures. The same
    files give the same results. seed: of resampled intervals of single cells. Raises DataError when the
    folder holds no plan or cannot be written, MissingExtraError without scipy.
    """
    ablation = read_ablation(folder, seed)
    effects = effects_of(ablation)
    try:
        tables = write_tables(folder, table_rows(ablation))
        results = {
            "about": _about(ablation, tables),
            "axes": axes_of(ablation, effects),
            "cells": [_cell(cell) for cell in ablation.cells],
            "effects": effects,
            "by_level": levels_of(ablation),
        }
        text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
        replace_text(folder / RESULTS, text + "\n")
    except OSError as error:
        raise DataError(f"{folder}: the results cannot be written: {error}") from error
    return results


def _about(ablation: Ablation, tables: list[str]) -> Record:
    counts = Counter(cell.state for cell in ablation.cells)
    return {
        "name": ablation.name,
        "question": ablation.question,
        "combine": ablation.combine,
        "figures": list(ablation.figures),
        "cost": ablation.cost,
        "seeds": sorted({cell.seed for cell in ablation.cells}),
        "states": {state: counts[state] for state in STATES if counts[state]},
        "complete": counts["done"] == len(ablation.cells),
        "spent": ablation.spent.as_dict(),
        "shared_failed": ablation.shared_failed,
        "tables": tables,
    }


def _cell(cell: Cell) -> Record:
    return {
        "id": cell.id,
        "levels": cell.levels,
        "seed": cell.seed,
        "kind": cell.kind,
        "state": cell.state,
        "error": cell.error,
        "attempts": cell.status.get("attempts"),
        "command": cell.status.get("command"),
        "diff": cell.diff,
        "cost": cell.cost.as_dict(),
        "shared_cost": cell.shared_cost.as_dict(),
        "figures": {name: record_of(figure) for name, figure in cell.measured.figures.items()},
    }
