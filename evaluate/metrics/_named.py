"""A metric of a config or of a command line: built, and held against what is known of the items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_options
from prismcap.configs.schema.base import Component
from prismcap.configs.schema.run import metric_key
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, Metric, MetricContext, Need


@dataclass(frozen=True)
class NamedMetric:
    """key: what its figures' names begin with, `<key>.<figure>`. where: file and key path, for errors."""

    key: str
    metric: Metric
    where: str

    def figures(self, items: Sequence[CaptionItem]) -> dict[str, ItemFigure]:
        """By their whole name. Raises as Metric.figures, and ConfigError for a metric that keeps no contract:
        names twice, another number of values than of items, or values that are not finite."""
        found: dict[str, ItemFigure] = {}
        for figure in self.metric.figures(items):
            name = f"{self.key}.{figure.name}"
            if name in found:
                raise ConfigError(f"{self.where}: the metric gives two figures called {figure.name!r}")
            if len(figure.values) != len(items):
                raise ConfigError(
                    f"{self.where}: figure {figure.name!r} has {len(figure.values)} values for "
                    f"{len(items)} items; it needs one for each, None where it does not apply"
                )
            for item, value in zip(items, figure.values, strict=True):
                if value is not None and not math.isfinite(value):
                    raise ConfigError(f"{self.where}: figure {figure.name!r} is {value} for item {item.id!r}")
            # plain numbers, whatever array they came from: they go into files
            values = [None if value is None else float(value) for value in figure.values]
            found[name] = replace(figure, values=values)
        return found


def build_metric(component: Component, context: MetricContext, where: str) -> NamedMetric:
    """Raises ConfigError naming the nearest metric, or a wrong option's key and value."""
    module, options = component_options("metric", component, where)
    metric: Metric = module.build(options, replace(context, where=where))
    return NamedMetric(metric_key(component.name), metric, where)


def check_needs(metric: NamedMetric, items: Sequence[CaptionItem], remedies: Mapping[Need, str]) -> None:
    """Raises ConfigError where some item lacks what the metric needs. remedies: what gives it, by need."""
    for need in sorted(metric.metric.needs):
        lacking = [item for item in items if not _has(item, need)]
        if lacking:
            whose = "the items have none" if len(lacking) == len(items) else _some(lacking, len(items))
            raise ConfigError(f"{metric.where}: it needs {need}, and {whose}. {remedies[need]}")


def _some(lacking: Sequence[CaptionItem], total: int) -> str:
    first = lacking[0]
    at = f" ({first.where})" if first.where else ""
    return f"{len(lacking)} of {total} items have none, the first of them {first.id!r}{at}"


def _has(item: CaptionItem, need: Need) -> bool:
    value = getattr(item, need)
    # no objects at all is something known; no references or statements is nothing to go by
    return len(value) > 0 if need in ("references", "statements") else value is not None
