"""What BLEU and CIDEr-D count: runs of one to four tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MAX_SIZE = 4
NGram = tuple[str, ...]


def ngram_counts(words: Sequence[str]) -> Counter[NGram]:
    """How often each run of 1..MAX_SIZE words occurs."""
    return Counter(
        tuple(words[start : start + size])
        for size in range(1, MAX_SIZE + 1)
        for start in range(len(words) - size + 1)
    )
