"""The figures of a Prism run from its items: rates per cell, comparisons, causes, accuracy by length."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismcap.evaluate.intervals import Rate
from prismcap.evaluate.prism.attribution import REFERENCE, attribute, count_causes
from prismcap.evaluate.prism.cells import Cell, Row, by_cell, cluster_of
from prismcap.evaluate.prism.comparisons import Side, compare_sides, pairs_of
from prismcap.evaluate.statistics.clustered import ClusteredItems

LENGTH_BINS = 4  # quartiles: at 600 questions a bin still has about 150
Costs = Mapping[Cell, Mapping[str, Any]]  # cell -> stage -> totals of prism.cost.total_cost
Selected = NDArray[np.bool_]


def summarise(
    items: Iterable[Row], costs: Costs, seed: int, references: Collection[str] = (REFERENCE,)
) -> dict[str, Any]:
    """`cells`, `comparisons`, `comparisons_left_out`, `attribution` and `length_curve` of results.json.

    items: rows of items.jsonl; a failed request counts as a wrong answer everywhere, and its share stands
    beside. Every rate has an interval resampled by picture where pictures repeat (statistics.clustered).
    comparisons: every two cells of a benchmark that differ in one of perceiver, instruction, reasoner; one
    family per benchmark, at most comparisons.MAX_PAIRS, comparisons_left_out counts the rest by benchmark.
    references: perceivers whose descriptions are known to be right. Raises DataError for an item that occurs
    twice.
    """
    items = list(items)
    grouped = by_cell(items)
    result: dict[str, Any] = {
        "cells": [],
        "comparisons": [],
        "comparisons_left_out": {},
        "attribution": count_causes(attribute(items, references)),
        "length_curve": [],
    }
    for benchmark in dict.fromkeys(cell.benchmark for cell in grouped):
        cells = {cell: rows for cell, rows in grouped.items() if cell.benchmark == benchmark}
        universe = _Universe(cells, seed)
        for cell, rows in cells.items():
            figures, curve = universe.figures(rows)
            names = cell.as_dict()
            result["cells"].append({**names, **figures, "cost": dict(costs.get(cell, {}))})
            result["length_curve"] += [{**names, **point} for point in curve]
        pairs, left_out = pairs_of(list(cells))
        sides = {cell: Side(cell.as_dict(), rows) for cell, rows in cells.items()}
        result["comparisons"] += compare_sides(
            benchmark, [(sides[a], sides[b]) for a, b in pairs], family=benchmark, seed=seed
        )
        result["comparisons_left_out"][benchmark] = left_out
    return result


class _Universe:
    """All questions of a benchmark that any cell answered: every cell's rates share their resamples."""

    def __init__(self, cells: Mapping[Cell, Mapping[str, Row]], seed: int) -> None:
        first: dict[str, Row] = {}
        for rows in cells.values():
            for question, row in rows.items():
                first.setdefault(question, row)
        self._place = {question: position for position, question in enumerate(first)}
        self._items = ClusteredItems([cluster_of(row) for row in first.values()], seed)
        self._seed = seed
        self._circles: dict[str, int] = {}  # circle -> how many rotations it has
        for row in first.values():
            if row["circle"]:
                self._circles[row["circle"]] = self._circles.get(row["circle"], 0) + 1

    def figures(self, rows: Mapping[str, Row]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(a cell's figures as in results.json, its points of the length curve)."""
        right = self._values([float(row["right"]) for row in rows.values()], rows)
        expected = self._values([float(row["expected"]) for row in rows.values()], rows)
        everywhere = self._selected(rows)
        columns: list[tuple[NDArray[np.float64], Selected]] = [(right, everywhere), (expected, everywhere)]
        answered = self._selected(question for question, row in rows.items() if not row["refused"])
        if answered.any():
            columns.append((right, answered))
        by: dict[str, dict[str, int]] = {}
        for name, groups in _categories(rows).items():
            for value, questions in groups.items():
                by.setdefault(name, {})[value] = len(columns)
                columns.append((right, self._selected(questions)))
        bins = _length_bins(rows)
        first_bin = len(columns)
        columns += [(right, self._selected(part["questions"])) for part in bins]
        rates, macros = self._items.rates(
            np.stack([values for values, _ in columns], axis=1),
            np.stack([selected for _, selected in columns], axis=1),
            {name: list(values.values()) for name, values in by.items()},
        )
        shown = [rate.as_dict() for rate in rates]
        circular = self._circular(rows)
        figures = {
            "n": len(rows),
            "micro": shown[0],
            "macro": {name: rate.as_dict() for name, rate in macros.items()},
            "by": {name: {value: shown[at] for value, at in values.items()} for name, values in by.items()},
            "circular": circular.as_dict() if circular is not None else None,
            "refusals": {
                "wrong": shown[0],
                "expected": shown[1],
                "excluded": shown[2] if answered.any() else None,
            },
            **_shares(rows),
            "description_tokens": _description_length(rows),
        }
        curve = [
            {"tokens": part["length"], "unit": part["unit"], "rate": shown[first_bin + number]}
            for number, part in enumerate(bins)
        ]
        return figures, curve

    def _circular(self, rows: Mapping[str, Row]) -> Rate | None:
        """Right in all rotations, over the questions of which the cell has all (MMBench's circular rule)."""
        circles: dict[str, list[Row]] = {}
        for row in rows.values():
            if row["circle"]:
                circles.setdefault(row["circle"], []).append(row)
        whole = [group for circle, group in circles.items() if len(group) == self._circles[circle]]
        if not whole:
            return None
        flags = np.asarray([[float(all(row["right"] for row in group))] for group in whole])
        items = ClusteredItems([cluster_of(group[0]) for group in whole], self._seed)
        return items.rates(flags, np.ones(flags.shape, dtype=bool))[0][0]

    def _selected(self, questions: Iterable[str]) -> Selected:
        selected = np.zeros(len(self._place), dtype=bool)
        selected[[self._place[question] for question in questions]] = True
        return selected

    def _values(self, values: Sequence[float], rows: Mapping[str, Row]) -> NDArray[np.float64]:
        column = np.zeros(len(self._place))
        column[[self._place[question] for question in rows]] = values
        return column


def _categories(rows: Mapping[str, Row]) -> dict[str, dict[str, list[str]]]:
    """Column -> value -> questions; a question without a value in a column is in none of its groups."""
    columns: dict[str, dict[str, list[str]]] = {}
    for question, row in rows.items():
        for name, value in row["categories"].items():
            if value:
                columns.setdefault(name, {}).setdefault(value, []).append(question)
    return columns


def _shares(rows: Mapping[str, Row]) -> dict[str, float]:
    """Shares of all items: refused; unmatched (a reply, no refusal, no answer read); failed; cut off."""
    ok = [row for row in rows.values() if row["status"] == "ok"]
    counts = {
        "refused": sum(row["refused"] for row in ok),
        "unmatched": sum(row["extracted"] is None and not row["refused"] for row in ok),
        "failed": len(rows) - len(ok),
        "cut_off": sum(row["cut_off"] for row in ok),
    }
    return {name: round(count / len(rows), 6) for name, count in counts.items()}


def _lengths(rows: Mapping[str, Row]) -> tuple[dict[str, int], str]:
    """(question -> length of its description, unit): tokens as the perceiver counted them, else words.

    One unit for the whole cell: words stand in where any description was not counted.
    """
    described = {question: row for question, row in rows.items() if row["description"]}
    tokens = {question: row.get("description_tokens") for question, row in described.items()}
    counted = {question: int(number) for question, number in tokens.items() if number is not None}
    if len(counted) == len(described):
        return counted, "tokens"
    return {question: len(str(row["description"]).split()) for question, row in described.items()}, "words"


def _description_length(rows: Mapping[str, Row]) -> dict[str, Any] | None:
    lengths, unit = _lengths(rows)
    if not lengths:
        return None
    values = list(lengths.values())
    return {"mean": round(mean(values), 2), "median": median(values), "unit": unit}


def _length_bins(rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Questions in quantile bins of their descriptions' lengths; equal lengths are never parted, so that a
    bin may take more than its share, and there may be fewer bins."""
    lengths, unit = _lengths(rows)
    if not lengths:
        return []
    edges = np.quantile(list(lengths.values()), np.arange(1, LENGTH_BINS) / LENGTH_BINS)
    groups: dict[int, list[str]] = {}
    for question, length in lengths.items():
        groups.setdefault(int(np.searchsorted(edges, length)), []).append(question)
    bins = []
    for _, questions in sorted(groups.items()):
        of = [lengths[question] for question in questions]
        span = {"low": min(of), "high": max(of), "mean": round(mean(of), 2)}
        bins.append({"questions": questions, "unit": unit, "length": span})
    return bins
