"""Items and figures of the tests: scenes without drawings, pictures of noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from prismcap.configs.registry import component_options
from prismcap.configs.schema.base import Component
from prismcap.data.scenes.graph import Background, Place, SceneGraph, SceneObject, Size
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, Metric, MetricContext


@dataclass(frozen=True)
class Noise:
    """A picture that its seed decides. Not square, so that a crop is seen."""

    seed: int

    def load(self) -> Image.Image:
        pixels = np.random.default_rng(self.seed).integers(0, 256, (40, 52, 3), dtype=np.uint8)
        return Image.fromarray(pixels, "RGB")

    def fingerprint(self) -> str:
        return f"noise {self.seed}"


def scene(*pairs: tuple[str, Place], background: str = "striped blue", size: Size = "large") -> SceneGraph:
    """A graph of (word, place)."""
    texture, color = background.split()
    objects = tuple(
        SceneObject(word, f"x:{word}", "thing", place, size, (0, 0, 9, 9)) for word, place in pairs
    )
    return SceneGraph(32, Background(color, texture), objects)


def build(name: str, context: MetricContext | None = None, **options: Any) -> Metric:
    """As the command line builds it."""
    module, checked = component_options("metric", Component(name=name, **options))
    metric: Metric = module.build(checked, context or MetricContext(batch_size=3))
    return metric


def by_name(figures: Sequence[ItemFigure]) -> dict[str, ItemFigure]:
    assert len({figure.name for figure in figures}) == len(figures)
    return {figure.name: figure for figure in figures}


def value(figure: ItemFigure) -> float:
    """Of all items, as the contract says."""
    if figure.sums is not None:
        assert figure.combine is not None
        return float(figure.combine(figure.sums.sum(axis=0)))
    there = [one for one in figure.values if one is not None]
    return sum(there) / len(there)


def values_of(metric: Metric, items: Sequence[CaptionItem]) -> Mapping[str, float]:
    return {figure.name: value(figure) for figure in metric.figures(items)}
