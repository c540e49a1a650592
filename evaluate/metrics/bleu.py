"""BLEU-1..4 (Papineni et al., ACL 2002), the numbers of pycocoevalcap's Bleu with the closest length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, Floats, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._ngrams import MAX_SIZE, NGram, ngram_counts
from prismcap.evaluate.metrics._ptb import TOKENS, tokenize

__all__ = ["Options", "build", "combine"]

# pycocoevalcap's: they keep divisions by zero away, and are why an item without a match scores 1e-8, not 0
_TINY, _SMALL = 1e-15, 1e-9


class Options(Section):
    """BLEU has no options."""


def build(options: Options, context: MetricContext) -> Bleu:  # noqa: ARG001
    return Bleu()


class Bleu:
    """bleu_1..bleu_4: one figure of the whole set; the values of items are sentences scored alone."""

    needs: frozenset[Need] = frozenset({"references"})
    identity = f"bleu 1; {TOKENS}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        """From the matches and lengths of all items together: no mean of the items' values."""
        sums = np.array([_counts(item) for item in items], dtype=np.float64)
        figures = []
        for size in range(1, MAX_SIZE + 1):
            of_size = partial(combine, size=size)
            values = of_size(sums).tolist()
            note = f"BLEU-{size} over all items; brevity against the closest reference"
            figures.append(ItemFigure(f"bleu_{size}", values, note, sums=sums, combine=of_size))
        return figures


def combine(sums: Floats, size: int) -> Floats:
    """[..., 10] matches of 1..4 words, runs of 1..4 words, lengths of candidate and reference -> [...].

    The geometric mean of the shares of runs of 1..size words that match, times the brevity penalty.
    """
    matches, totals = sums[..., :size], sums[..., MAX_SIZE : MAX_SIZE + size]
    share = ((matches + _TINY) / (totals + _SMALL)).prod(axis=-1) ** (1 / size)
    ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
    result: Floats = share * np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return result


def _counts(item: CaptionItem) -> list[int]:
    words = tokenize(item.text).split()
    references = [tokenize(reference).split() for reference in item.references]
    allowed: Counter[NGram] = Counter()
    for reference in references:
        allowed |= ngram_counts(reference)  # the most that any one reference has of it
    matches = [0] * MAX_SIZE
    for ngram, count in (ngram_counts(words) & allowed).items():
        matches[len(ngram) - 1] += count
    totals = [max(0, len(words) - size) for size in range(MAX_SIZE)]
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in references)[1]
    return [*matches, *totals, len(words), closest]
