"""METEOR 1.5 (Denkowski and Lavie, WMT 2014) for English, the numbers of pycocoevalcap's Meteor.

Alignment is done by the program in Java that pycocoevalcap holds (`pip install --no-deps pycocoevalcap`); it
takes some ten seconds to start and up to 2 GB of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, Floats, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._java import package_file, run_java
from prismcap.evaluate.metrics._ptb import TOKENS, tokenize

__all__ = ["Options", "build", "combine"]

# for English, tuned to rankings: "Meteor 1.3" (Denkowski and Lavie, WMT 2011); 1.5 kept them
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_NUM_STATISTICS = 23
_LENGTHS, _CHUNKS, _MATCHED = slice(0, 2), 20, slice(21, 23)
_SEPARATOR = "|||"


class Options(Section):
    """METEOR has no options."""


def build(options: Options, context: MetricContext) -> Meteor:  # noqa: ARG001
    return Meteor()


class Meteor:
    """meteor: one figure of the whole set, from the statistics of all items; needs Java and pycocoevalcap."""

    needs: frozenset[Need] = frozenset({"references"})
    identity = f"meteor 1.5 en; {TOKENS}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        """Raises ConfigError without the package or Java, and when the program fails."""
        jar = package_file("meteor/meteor-1.5.jar", "meteor")
        asked = "".join(_line(item) for item in items)
        written = run_java(jar, ["-", "-", "-stdio", "-l", "en", "-norm"], "2G", "meteor", asked)
        sums = read_statistics(written, len(items))
        note = "METEOR over all items; for each the reference that fits best"
        return [ItemFigure("meteor", combine(sums).tolist(), note, sums=sums, combine=combine)]


def read_statistics(written: str, num_items: int) -> Floats:
    """[items, 23] from the program's lines, as `combine` takes them.

    Raises ConfigError where they are not what was asked for.
    """
    rows = [line.split() for line in written.splitlines()]
    if len(rows) != num_items or any(len(row) != _NUM_STATISTICS for row in rows):
        raise ConfigError(
            f"meteor: expected {num_items} lines of {_NUM_STATISTICS} numbers from meteor-1.5.jar, found "
            f"{len(rows)} lines, the last: {written.splitlines()[-1:]}"
        )
    sums = np.array(rows, dtype=np.float64).reshape(num_items, _NUM_STATISTICS)
    # two texts that match whole are in no pieces; the program leaves their piece out of its sums too
    whole = (sums[:, _MATCHED] == sums[:, _LENGTHS]).all(axis=1) & (sums[:, _CHUNKS] == 1)
    sums[whole, _CHUNKS] = 0
    return sums


def combine(sums: Floats) -> Floats:
    """[..., 23] the program's statistics -> [...].

    Lengths of candidate and reference, function words in each; then for each matcher the content words that
    match (candidate, reference) and the function words that match; then pieces, and all words that match.
    """
    lengths, function_words = sums[..., _LENGTHS], sums[..., 2:4]
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    content, function = matches[..., 0:2], matches[..., 2:4]
    weighted = ((_DELTA * content + (1 - _DELTA) * function) * _MATCHERS[:, None]).sum(axis=-2)
    total = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / total, -1, 0)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragments = sums[..., _CHUNKS] / sums[..., _MATCHED].mean(axis=-1)
    score: Floats = mean * (1 - _GAMMA * fragments**_BETA)
    return np.nan_to_num(score, nan=0.0)  # nothing matches, or a text is empty


def _line(item: CaptionItem) -> str:
    texts = [*map(tokenize, item.references), tokenize(item.text)]
    parts = ["SCORE", *(text.replace(_SEPARATOR, "") for text in texts)]
    return f" {_SEPARATOR} ".join(parts) + "\n"
