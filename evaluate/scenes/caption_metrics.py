"""Caption metrics (evaluate/metrics) of a split: its short and long captions, with each control's picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import EvaluationConfig, metric_key
from prismcap.data.scenes.text import CAPTION_KINDS
from prismcap.data.schema import ImageRef
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._interval import FigureIntervals, clusters_of
from prismcap.evaluate.metrics._named import NamedMetric, build_metric
from prismcap.evaluate.scenes.figures import CONTROLS, Control, Result
from prismcap.evaluate.scenes.items import Item

GIVEN: frozenset[Need] = frozenset({"references", "image", "objects", "graph"})


@dataclass(frozen=True)
class MeasuredCaptions:
    """values: figure -> {rate or mean, low, high, n, unit, higher_is_better, controls} as metrics.json has
    them. notes: what each counts. of_items: figure -> (item, its value) with the item's own picture."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    of_items: dict[str, list[tuple[Item, float]]] = field(default_factory=dict)


def build_metrics(
    evaluation: EvaluationConfig, path: str, device: str, names: Collection[str] | None = None
) -> list[NamedMetric]:
    """The metrics of the config, none loaded yet. names: these alone, by metric_key.

    Raises ConfigError as build_metric, and for one that needs what no scene has.
    """
    context = MetricContext(device=device, batch_size=evaluation.batch_size)
    found = []
    for position, component in enumerate(evaluation.metrics):
        if names is not None and metric_key(component.name) not in names:
            continue
        metric = build_metric(component, context, f"{path}: evaluation.metrics.{position}")
        absent = ", ".join(sorted(metric.metric.needs - GIVEN))
        if absent:
            raise ConfigError(
                f"{metric.where}: {component.name} needs {absent}, and the captions of a split have "
                f"{', '.join(sorted(GIVEN))}. Leave it out here; `prismcap metrics` takes files of the rest."
            )
        found.append(metric)
    return found


def try_metrics(metrics: Sequence[NamedMetric], items: Sequence[Item]) -> list[str]:
    """One true caption through every metric: what one lacks (a package, a program, weights) shows before an
    hour of work, not after. Returns the figures' names. Raises as Metric.figures."""
    for item in items:
        if item.kind in CAPTION_KINDS:
            caption = _caption(item, item.truth, "none", "")
            return [name for metric in metrics for name in metric.figures([caption])]
    return []


def measure_captions(
    metrics: Sequence[NamedMetric], results: Sequence[Result], seed: int
) -> MeasuredCaptions:
    """Every metric of the captions among the results. Raises as Metric.figures.

    Truth, scene and picture are the item's own under every control. All intervals are of the same resampled
    pictures. A figure that cannot be computed is left out, under a control or altogether.
    """
    measured = MeasuredCaptions()
    captions = [result for result in results if result.item.kind in CAPTION_KINDS]
    if not metrics or not captions:
        return measured
    pictures = _fingerprints(captions)
    items: dict[Control, list[CaptionItem]] = {control: [] for control in CONTROLS}
    own = [result.item for result in captions if result.control == "none"]
    for result in captions:
        item = _caption(result.item, result.text.strip(), result.control, pictures[result.item.image])
        items[result.control].append(item)
    intervals = {control: FigureIntervals(clusters_of(of), seed) for control, of in items.items() if of}
    for metric in metrics:
        figures = {control: metric.figures(of) for control, of in items.items() if of}
        for name, figure in figures["none"].items():
            value = intervals["none"].value(figure)
            if value is None:
                continue
            measured.values[name] = {
                **value.as_dict(),
                "unit": figure.unit,
                "higher_is_better": figure.higher_is_better,
                "controls": _controls(name, figures, intervals),
            }
            measured.notes[name] = figure.note
            measured.of_items[name] = [
                (item, float(known))
                for item, known in zip(own, figure.values, strict=True)
                if known is not None
            ]
    return measured


def _controls(
    name: str,
    figures: Mapping[Control, Mapping[str, ItemFigure]],
    intervals: Mapping[Control, FigureIntervals],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for control, of in figures.items():
        value = intervals[control].value(of[name]) if control != "none" and name in of else None
        if value is not None:
            found[control] = value.as_dict()
    return found


def _caption(item: Item, text: str, control: str, picture: str) -> CaptionItem:
    return CaptionItem(
        id=item.id,
        text=text,
        where=f"split {item.split}, item {item.id}, picture of the control {control!r}",
        cluster=picture,
        references=(item.truth,),
        image=item.image,
        objects=item.graph.words,
        graph=item.graph,
    )


def _fingerprints(results: Sequence[Result]) -> dict[ImageRef, str]:
    return {image: image.fingerprint() for image in {result.item.image for result in results}}
