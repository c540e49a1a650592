"""ROUGE-L (Lin, ACL 2004) as COCO's evaluation counts it: the numbers of pycocoevalcap's Rouge."""

from __future__ import annotations

from collections.abc import Sequence

from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._ptb import TOKENS, tokenize

__all__ = ["Options", "build"]

BETA = 1.2  # recall weighs more than precision; coco-caption's, arXiv 1504.00325


class Options(Section):
    """ROUGE-L has no options."""


def build(options: Options, context: MetricContext) -> RougeL:  # noqa: ARG001
    return RougeL()


class RougeL:
    """rouge_l: the mean over items of the F-score of the longest common subsequence."""

    needs: frozenset[Need] = frozenset({"references"})
    identity = f"rouge_l 1; {TOKENS}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        note = "mean over items; precision and recall are each the best of any reference"
        return [ItemFigure("rouge_l", [_score(item) for item in items], note)]


def _score(item: CaptionItem) -> float:
    # split(" "), not split(): an empty text is one empty word, which matches an empty reference
    words = tokenize(item.text).split(" ")
    precision = recall = 0.0
    for reference in item.references:
        others = tokenize(reference).split(" ")
        common = longest_common(words, others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)  # of the words of `one` so far with each beginning of `other`
    for word in one:
        before = 0
        for position, candidate in enumerate(other, 1):
            above = lengths[position]
            lengths[position] = before + 1 if word == candidate else max(above, lengths[position - 1])
            before = above
    return lengths[-1]
