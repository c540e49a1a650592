"""How long texts are, and how much of them repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._shares import that_apply
from prismcap.evaluate.metrics._words import words

VERSION = 1  # raise it whenever a figure changes
_REPEATED = 3  # words in a row that are taken for a repetition


class Options(Section):
    """None."""


def build(options: Options, context: MetricContext) -> Length:  # noqa: ARG001
    return Length()


class Length:
    """words, distinct_1, distinct_2 (Li et al., arXiv 1510.03055) and repetition.

    Each is the mean of the texts' own: the paper's distinct-n counts n-grams of all texts together, which
    falls with their number. A text with fewer than n words has no n-gram, and no value.
    """

    needs: frozenset[Need] = frozenset()
    identity = f"length {VERSION}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        said = [words(item.text) for item in items]
        distinct = {n: [_distinct(text, n) for text in said] for n in (1, 2, _REPEATED)}
        repeated = [None if value is None else 1 - value for value in distinct[_REPEATED]]
        return that_apply(
            [
                ItemFigure(
                    "words",
                    [float(len(text)) for text in said],
                    "words of a text, numbers included",
                    higher_is_better=None,
                    unit="words",
                ),
                *(
                    ItemFigure(
                        f"distinct_{n}",
                        distinct[n],
                        f"share of a text's {'words' if n == 1 else 'pairs of words'} that differ",
                        higher_is_better=None,
                    )
                    for n in (1, 2)
                ),
                ItemFigure(
                    "repetition",
                    repeated,
                    "share of a text's runs of three words that stood in it before",
                    higher_is_better=False,
                ),
            ]
        )


def _distinct(text: Sequence[str], n: int) -> float | None:
    """Different n-grams over all of them."""
    grams = [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
