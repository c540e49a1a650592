"""CIDEr-D (Vedantam et al., CVPR 2015, arXiv 1411.5726): the numbers of pycocoevalcap's Cider."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._ngrams import MAX_SIZE, NGram, ngram_counts
from prismcap.evaluate.metrics._ptb import TOKENS, tokenize

__all__ = ["Options", "build"]

SIGMA = 6.0  # of the penalty on a different length, in words; the paper's section 6
SCALE = 10.0  # the paper's: a perfect caption scores 10


class Options(Section):
    """CIDEr-D has no options."""


def build(options: Options, context: MetricContext) -> CiderD:  # noqa: ARG001
    return CiderD()


class CiderD:
    """cider_d: the mean over items, 0..10; papers print 1.2 as 120.

    How rare a run of words is comes from the references given, by item: figures of different sets of items
    are not to be compared, a set of one item scores 0, and intervals take the rarities as given.
    """

    needs: frozenset[Need] = frozenset({"references"})
    identity = f"cider_d 1; {TOKENS}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        references = [[_counts(text) for text in item.references] for item in items]
        seen_in: Counter[NGram] = Counter()
        for of_item in references:
            seen_in.update({ngram for counts in of_item for ngram in counts})
        rarity: defaultdict[NGram, float] = defaultdict(lambda: math.log(len(items)))
        rarity.update({ngram: math.log(len(items) / number) for ngram, number in seen_in.items()})
        values = []
        for item, of_item in zip(items, references, strict=True):
            candidate = _weighted(_counts(item.text), rarity)
            scores = [_similarity(candidate, _weighted(counts, rarity)) for counts in of_item]
            values.append(SCALE * sum(scores) / len(scores))
        note = "mean over items; rarity of words from the references of these items"
        return [ItemFigure("cider_d", values, note, unit="score")]


@dataclass(frozen=True)
class _Weighted:
    """weights: count times rarity, by size of run. norms: their Euclidean lengths. length: in pairs of
    words, as pycocoevalcap measures it."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    length: int


def _counts(text: str) -> Counter[NGram]:
    return ngram_counts(tokenize(text).split())


def _weighted(counts: Counter[NGram], rarity: dict[NGram, float]) -> _Weighted:
    weights: list[dict[NGram, float]] = [{} for _ in range(MAX_SIZE)]
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * rarity[ngram]
    norms = [math.sqrt(sum(weight**2 for weight in of_size.values())) for of_size in weights]
    return _Weighted(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    """0..1: the mean over sizes of the clipped cosine, less where the lengths differ."""
    total = 0.0
    for size in range(MAX_SIZE):
        known = reference.weights[size]
        product = sum(
            min(weight, known[ngram]) * known[ngram]
            for ngram, weight in candidate.weights[size].items()
            if ngram in known
        )
        norm = candidate.norms[size] * reference.norms[size]
        total += product / norm if norm else product
    difference = candidate.length - reference.length
    return total / MAX_SIZE * math.exp(-(difference**2) / (2 * SIGMA**2))
