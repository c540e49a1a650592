"""What captions of composed scenes say, against the scene: objects, places, number and background."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._scene_text import READER_VERSION, SaidScene, read_of
from prismcap.evaluate.metrics._shares import precision_recall_f1, table, that_apply
from prismcap.evaluate.metrics._vocabulary import scene_vocabulary

VERSION = 1  # raise it whenever a figure changes

Counts = tuple[float, float, float]  # hits, said, true


class Options(Section):
    """None."""


def build(options: Options, context: MetricContext) -> SceneGraphMatch:  # noqa: ARG001
    return SceneGraphMatch()


class SceneGraphMatch:
    """precision, recall and F1 of each part, over all items together; a part's own value for each item.

    Words are right by themselves alone: a flower is no rose here. A text that gives no number is taken to
    say that of the objects it names; one without a background says none, so a short caption recalls none.
    """

    needs: frozenset[Need] = frozenset({"graph"})

    @property
    def identity(self) -> str:
        return f"scene_graph {VERSION} reader {READER_VERSION} words {scene_vocabulary().digest}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        said = [_read(item) for item in items]
        parts = {
            "objects": ("objects by their words", _objects),
            "places": ("objects with their places", _places),
            "number": ("the number of objects", _number),
            "background": ("colour and texture of the background", _background),
        }
        found: list[ItemFigure] = []
        for name, (about, count) in parts.items():
            counts = table(count(one, item) for one, item in zip(said, items, strict=True))
            found += precision_recall_f1(f"{name}_", counts, about)
        return that_apply(found)


def _read(item: CaptionItem) -> SaidScene:
    assert item.graph is not None, "the caller checks `needs`"
    return read_of(item.text, item.graph)


def _objects(said: SaidScene, item: CaptionItem) -> Counts:
    assert item.graph is not None
    return _matches(said.words, set(item.graph.words))


def _places(said: SaidScene, item: CaptionItem) -> Counts:
    assert item.graph is not None
    return _matches(said.pairs, set(item.graph.pairs()))


def _number(said: SaidScene, item: CaptionItem) -> Counts:
    assert item.graph is not None
    return _matches({said.number} - {None}, {len(item.graph.objects)})


def _background(said: SaidScene, item: CaptionItem) -> Counts:
    assert item.graph is not None
    return _matches({said.background} - {None}, {item.graph.background.name})


def _matches(said: AbstractSet[object], true: AbstractSet[object]) -> Counts:
    return float(len(said & true)), float(len(said)), float(len(true))
