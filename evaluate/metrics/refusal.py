"""How many texts refuse, or say that they cannot tell."""

from __future__ import annotations

from collections.abc import Sequence

from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.scoring.refusal import is_refusal
from prismcap.evaluate.scoring.replies import sentences, visible

VERSION = 1  # raise it whenever a figure changes


class Options(Section):
    """None."""


def build(options: Options, context: MetricContext) -> Refusal:  # noqa: ARG001
    return Refusal()


class Refusal:
    """Words of a refusal are those of evaluate/scoring/refusal.py; thinking blocks are not read.

    A text that opens with them refuses. One that describes and then says of a detail that it cannot be told
    only hedges. Rules err both ways: "The picture does not show people, but a dog" opens like a refusal.
    """

    needs: frozenset[Need] = frozenset()
    identity = f"refusal {VERSION}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        return [
            ItemFigure(
                "refusal",
                [float(_opens_with_refusal(item.text)) for item in items],
                "share of texts whose first sentence refuses or says that it cannot be told",
                higher_is_better=False,
            ),
            ItemFigure(
                "hedging",
                [float(is_refusal(item.text)) for item in items],
                "share of texts with words of a refusal in any sentence",
                higher_is_better=None,
            ),
        ]


def _opens_with_refusal(text: str) -> bool:
    found = sentences(visible(text))
    return bool(found) and is_refusal(found[0][1])
