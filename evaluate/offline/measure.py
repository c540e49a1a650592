"""Metrics of one file of texts, and of two held against each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.configs.errors import DataError
from prismcap.evaluate.intervals import Mean, Rate
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure
from prismcap.evaluate.metrics._interval import FigureIntervals, corrected
from prismcap.evaluate.metrics._named import NamedMetric, check_needs
from prismcap.evaluate.offline.items import REMEDIES


@dataclass(frozen=True)
class Measured:
    """figures, and values (None: cannot be computed), by `<metric>.<figure>`, on the items in their order."""

    items: Sequence[CaptionItem]
    figures: Mapping[str, ItemFigure]
    values: Mapping[str, Rate | Mean | None]

    def value_of(self, name: str) -> dict[str, Any]:
        """{value, low, high, n} of a figure, and `few_items` as everywhere; null where it has none."""
        found = self.values[name]
        if found is None:
            return {"value": None, "low": None, "high": None, "n": 0}
        values: dict[str, Any] = found.as_dict()
        return {"value": values.pop("rate" if isinstance(found, Rate) else "mean"), **values}

    def as_dict(self) -> dict[str, Any]:
        """{figures: {name: {value, low, high, n, unit, higher_is_better, note}}, items: [{id, cluster,
        values}]}; value, low and high are null where the figure cannot be computed."""
        return {
            "figures": {
                name: {
                    **self.value_of(name),
                    "unit": figure.unit,
                    "higher_is_better": figure.higher_is_better,
                    "note": figure.note,
                }
                for name, figure in self.figures.items()
            },
            "items": [
                {
                    "id": item.id,
                    "cluster": item.cluster,
                    "values": {name: figure.values[at] for name, figure in self.figures.items()},
                }
                for at, item in enumerate(self.items)
            ],
        }


def measure(
    metrics: Iterable[NamedMetric], items: Sequence[CaptionItem], intervals: FigureIntervals
) -> Measured:
    """Raises ConfigError for a metric that needs what was not given, before any is computed; and as
    Metric.figures."""
    metrics = list(metrics)
    for metric in metrics:
        check_needs(metric, items, REMEDIES)
    figures = {name: figure for metric in metrics for name, figure in metric.figures(items).items()}
    return Measured(items, figures, {name: intervals.value(figure) for name, figure in figures.items()})


def in_order_of(
    first: Sequence[CaptionItem], second: Sequence[CaptionItem], other: Path
) -> list[CaptionItem]:
    """The second's items in the order of the first's. Raises DataError where one has an id alone."""
    by_id = {item.id: item for item in second}
    lacking = [item for item in first if item.id not in by_id]
    known = {item.id for item in first}
    extra = [item for item in second if item.id not in known]
    for what, items in (("lacks", lacking), ("has besides", extra)):
        if items:
            raise DataError(
                f"--compare {other}: it {what} {len(items)} of the items, the first {items[0].id!r} "
                f"({items[0].where}). A paired difference is of the same items on both sides"
            )
    return [by_id[item.id] for item in first]


def compare(a: Measured, b: Measured, intervals: FigureIntervals) -> dict[str, dict[str, Any]]:
    """b - a by figure: {mean, low, high, n, p, p_holm, minimum_detectable, unit}; figures that one side has
    alone, or that cannot be computed on one, are left out."""
    found = {
        name: intervals.difference(figure, b.figures[name])
        for name, figure in a.figures.items()
        if name in b.figures
    }
    rows = corrected({name: difference for name, difference in found.items() if difference is not None})
    return {name: {**row, "unit": a.figures[name].unit} for name, row in rows.items()}
