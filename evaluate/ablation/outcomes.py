"""What a cell of an ablation was measured to be: a value per figure, and one per figure and held-out item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.configs.errors import DataError
from prismcap.evaluate.prism.cells import cluster_of
from prismcap.evaluate.prism.finished import read_finished
from prismcap.evaluate.report.read import Record, is_number, read_lines, read_object, require_keys
from prismcap.evaluate.results import ABOUT, METRICS, OUTCOMES
from prismcap.evaluate.statistics.clustered import clustered_mean, clustered_rate

EVALUATE_AGAIN = "Run `prismcap evaluate` on this folder again: it writes the file."
# id and cluster: with another seed, another picture's item may have the same id
Item = tuple[str, str]
Outcomes = dict[Item, float]


@dataclass(frozen=True)
class Figure:
    """A figure of one cell with its 95% interval over items; low, high, n are None where nobody wrote them.

    share: in 0..1, shown in points; else in its own unit.
    """

    value: float
    low: float | None
    high: float | None
    n: int | None
    share: bool
    higher_is_better: bool | None = True


@dataclass(frozen=True)
class Measured:
    """figures: every figure of the cell; outcomes: figure -> items, of those that are per item."""

    figures: Mapping[str, Figure]
    outcomes: Mapping[str, Outcomes]


def read_trained(folder: Path, seed: int = 0) -> Measured:
    """A training run's metrics.json and outcomes.jsonl; either may be absent.

    A figure that only outcomes.jsonl has is the mean of its items. seed: of resampled intervals.
    Raises DataError naming the file and line that is damaged.
    """
    outcomes = _outcomes(folder / OUTCOMES)
    metrics: Record = {}
    if (folder / METRICS).exists():
        metrics = read_object(folder / METRICS, "written by prismcap evaluate", EVALUATE_AGAIN)
    figures: dict[str, Figure] = {}
    for split, values in metrics.items():
        if split != ABOUT and isinstance(values, dict):
            figures |= dict(_figures(split, values))
    return Measured(_with_items(figures, outcomes, seed), outcomes)


def read_prism_run(folder: Path, seed: int = 0) -> Measured:
    """A Prism run's items.jsonl: <benchmark>.<perceiver>.<instruction>.<reasoner> -> right or wrong.

    Raises DataError as finished.read_finished.
    """
    [run] = read_finished([folder], at_least=1)
    outcomes = {
        ".".join(cell.as_dict().values()): {
            (str(question), cluster_of(row)): float(bool(row["right"])) for question, row in rows.items()
        }
        for cell, rows in run.cells.items()
    }
    return Measured(_with_items({}, outcomes, seed), outcomes)


def _outcomes(path: Path) -> dict[str, Outcomes]:
    if not path.exists():
        return {}
    records = read_lines(path, "written by prismcap evaluate")
    require_keys(records, ("figure", "id", "cluster", "value"), f"{path}, row", f". {EVALUATE_AGAIN}")
    found: dict[str, Outcomes] = {}
    for number, record in enumerate(records, start=1):
        items = found.setdefault(str(record["figure"]), {})
        id, value = str(record["id"]), record["value"]
        if not is_number(value):
            raise DataError(f"{path}, row {number}: value {value!r} is no finite number. {EVALUATE_AGAIN}")
        # an empty cluster stands for the item by itself
        item = id, str(record["cluster"]) or f"\0{id}"
        if item in items:
            raise DataError(
                f"{path}, row {number}: item {id!r} of {record['figure']} occurs twice. {EVALUATE_AGAIN}"
            )
        items[item] = float(value)
    return found


def _figures(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Every mapping with a rate, mean or value, under its dotted name; a metric's figures lie one deeper."""
    for key in ("rate", "mean", "value"):
        if is_number(values.get(key)):
            yield name, _figure(values, key)
            return
    for key, inner in values.items():
        if isinstance(inner, Mapping):
            yield from _figures(f"{name}.{key}", inner)


def _figure(values: Mapping[str, Any], key: str) -> Figure:
    return Figure(
        value=float(values[key]),
        low=values.get("low"),
        high=values.get("high"),
        n=values.get("n"),
        share=key == "rate" or values.get("unit") == "share",
        higher_is_better=values.get("higher_is_better", True),
    )


def _with_items(
    figures: Mapping[str, Figure], outcomes: Mapping[str, Outcomes], seed: int
) -> dict[str, Figure]:
    found = dict(figures)
    for name, items in outcomes.items():
        if name in found or not items:
            continue
        values = list(items.values())
        clusters = [cluster for _, cluster in items]
        share = all(0 <= value <= 1 for value in values)
        if share:
            rate = clustered_rate(values, clusters, seed)
            found[name] = Figure(rate.rate, rate.low, rate.high, rate.n, share)
        else:
            mean = clustered_mean(values, clusters, seed)
            found[name] = Figure(mean.mean, mean.low, mean.high, mean.n, share)
    return found


def record_of(figure: Figure) -> Record:
    """As results.json keeps it."""
    return {
        "value": round(figure.value, 6),
        **{key: getattr(figure, key) for key in ("low", "high", "n", "share")},
    }
