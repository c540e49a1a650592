"""A mean of counts, a rate, and a ratio of sums: one figure of every form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, Floats, ItemFigure, MetricContext, Need


class Options(Section):
    lower: bool = False


class Words:
    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"references"})

    @property
    def identity(self) -> str:
        return f"words lower={self.options.lower}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        said = [(item.text.lower() if self.options.lower else item.text).split() for item in items]
        right = [{word for text in item.references for word in text.split()} for item in items]
        hits = [sum(word in of for word in words) for words, of in zip(said, right, strict=True)]
        sums = np.asarray([[hit, len(words)] for hit, words in zip(hits, said, strict=True)], dtype=float)
        return [
            ItemFigure("words", [len(words) for words in said], "number of words", unit="words"),
            ItemFigure("exact", [float(item.text in item.references) for item in items], "word for word"),
            ItemFigure(
                "precision",
                [hit / len(words) if words else None for hit, words in zip(hits, said, strict=True)],
                "share of its words that a reference has",
                sums=sums,
                combine=precision,
            ),
        ]


def precision(sums: Floats) -> Floats:
    share: Floats = sums[..., 0] / sums[..., 1]
    return share


def build(options: Options, context: MetricContext) -> Words:  # noqa: ARG001
    return Words(options)
