"""A metric that needs what it is told to, and keeps the contract or breaks it."""

from __future__ import annotations

from collections.abc import Sequence

from prismcap.configs.errors import DataError
from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need


class Options(Section):
    needs: tuple[Need, ...] = ()
    broken: str = ""


class Needy:
    def __init__(self, options: Options, context: MetricContext) -> None:
        self.options = options
        self.context = context

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(self.options.needs)

    @property
    def identity(self) -> str:
        return "needy"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        if self.options.broken == "no program":
            raise DataError(f"{self.context.where}: the program is not there")
        if self.options.broken == "pictures":
            return [ItemFigure("wide", [float(item.image.load().width) for item in items if item.image], "")]
        values: list[float | None] = [1.0 if item.answer in (None, item.text) else 0.0 for item in items]
        if self.options.broken == "few":
            values = values[1:]
        if self.options.broken == "nan":
            values[-1] = float("nan")
        if self.options.broken == "none":
            values = [None] * len(items)
        seen = ItemFigure("seen", values, "")
        return [seen, seen] if self.options.broken == "twice" else [seen]


def build(options: Options, context: MetricContext) -> Needy:
    return Needy(options, context)
