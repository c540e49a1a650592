"""The rows of a Prism page's tables, from results.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prismcap.configs.schema.prism import BLIND, END_TO_END
from prismcap.evaluate.intervals import difference_of_rates
from prismcap.evaluate.report.gallery import unique
from prismcap.evaluate.report.prism_read import CAUSES, PrismFiles, cell_key, cell_name, work_key
from prismcap.evaluate.report.read import Record

ALPHA = 0.05  # the intervals are of 95%
STAGES = ("instruct", "perceive", "reason")
COST = ("requests", "failed", "retries", "tokens_in", "tokens_out", "uncounted", "latency_s", "dollars")


def summary_rows(run: PrismFiles, benchmark: str) -> list[dict[str, Any]]:
    """The best cell of each kind: with descriptions, blind, end to end; kinds without a cell are left out."""
    kinds: dict[str, list[Record]] = {"with a description": [], "blind": [], "end to end": []}
    for cell in run.cells_of(benchmark):
        if cell["micro"] is None:
            continue
        if cell["perceiver"] == BLIND:
            kinds["blind"].append(cell)
        elif cell["reasoner"] == END_TO_END:
            kinds["end to end"].append(cell)
        else:
            kinds["with a description"].append(cell)
    rows = []
    for kind, cells in kinds.items():
        if cells:
            best = max(cells, key=lambda cell: cell["micro"]["rate"])
            rows.append({"kind": kind, "name": cell_name(best), "rate": best["micro"], "of": len(cells)})
    return rows


def side_by_side(runs: Sequence[PrismFiles], benchmark: str) -> list[dict[str, Any]]:
    """One row per cell that some run has: name, cells; a cell is {rate, difference} or None.

    difference: {mean, low, high, n} to the first run, None in its own column.
    """
    by_run = [{cell_key(cell): cell for cell in run.cells_of(benchmark)} for run in runs]
    rows = []
    for key in unique(key for cells in by_run for key in cells):
        rates = [cells[key]["micro"] if key in cells else None for cells in by_run]
        found: list[dict[str, Any] | None] = []
        for number, rate in enumerate(rates):
            against = rates[0] if number else None
            difference = difference_of_rates(against, rate).as_dict() if against and rate else None
            found.append({"rate": rate, "difference": difference} if rate else None)
        name = next(cell_name(cells[key]) for cells in by_run if key in cells)
        rows.append({"name": name, "cells": found})
    return rows


def ability_tables(cells: Sequence[Record]) -> list[dict[str, Any]]:
    """One table per category column: column, values, rows of {name, rates by value (or None)}."""
    tables = []
    for column in unique(column for cell in cells for column in cell.get("by") or {}):
        having = [cell for cell in cells if cell["by"].get(column)]
        values = unique(value for cell in having for value in cell["by"][column])
        rows = [
            {"name": cell_name(cell), "rates": [cell["by"][column].get(value) for value in values]}
            for cell in having
        ]
        tables.append({"column": column, "values": values, "rows": rows})
    return tables


def comparison_rows(comparisons: Iterable[Record], benchmark: str) -> list[dict[str, Any]]:
    """The comparisons of a benchmark with names and what may be said of each."""
    rows = [row for row in comparisons if row["benchmark"] == benchmark]
    return [
        {
            **row,
            "name_a": cell_name(row["a"]),
            "name_b": cell_name(row["b"]),
            "shown": is_shown(row),
            "verdict": verdict(row),
        }
        for row in rows
    ]


def _leaves_out_zero(difference: Record) -> bool:
    return bool(difference["low"] > 0 or difference["high"] < 0)


def _is_significant(row: Record) -> bool:
    return row["p_holm"] is not None and bool(row["p_holm"] < ALPHA)


def is_shown(row: Record) -> bool:
    """A difference counts as shown with Holm's p below ALPHA and an interval without 0."""
    return _leaves_out_zero(row["difference"]) and _is_significant(row)


def verdict(row: Record) -> str:
    """What a comparison shows, in words. `difference` is b - a."""
    difference = row["difference"]
    if is_shown(row):
        better, worse = (row["b"], row["a"]) if difference["mean"] > 0 else (row["a"], row["b"])
        points = 100 * abs(difference["mean"])
        return f"{cell_name(better)} is better than {cell_name(worse)} by {points:.1f} points"
    text = "no difference could be shown"
    if row.get("minimum_detectable") is not None:
        text += f" (minimum detectable {100 * row['minimum_detectable']:.1f} points)"
    if _leaves_out_zero(difference):
        text += "; the interval leaves out 0, but not enough so for this number of comparisons"
    elif _is_significant(row):
        text += "; McNemar's test finds one, but the interval contains 0"
    return text


def attribution_rows(run: PrismFiles, benchmark: str) -> list[Record]:
    return [row for row in run.attribution if row["benchmark"] == benchmark]


def causes_found(rows: Iterable[Record]) -> list[str]:
    """The causes that occur, in the order of the bar."""
    seen = {cause for row in rows for cause, count in row["causes"].items() if count}
    return [cause for cause in CAUSES if cause in seen]


def cost_rows(cells: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per cell and stage: name, stage and the keys of COST (None where not counted)."""
    return [
        {"name": cell_name(cell), "stage": stage, **{key: cell["cost"][stage].get(key) for key in COST}}
        for cell in cells
        for stage in STAGES
        if stage in (cell.get("cost") or {})
    ]


def cost_totals(cells: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per stage, of the whole benchmark: what several cells share is counted once."""
    rows = []
    for stage in STAGES:
        once: dict[tuple[str, ...], Record] = {}
        for cell in cells:
            if stage in (cell.get("cost") or {}):
                once.setdefault(work_key(cell, stage), cell["cost"][stage])
        if once:
            rows.append({"stage": stage, **{key: _total(once.values(), key) for key in COST}})
    return rows


def _total(costs: Iterable[Record], key: str) -> float | None:
    """The sum of what was counted; None where nothing was."""
    counted = [cost[key] for cost in costs if cost.get(key) is not None]
    return sum(counted) if counted else None
