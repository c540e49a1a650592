"""What is held out of training, decided by hash: the same for every seed, source and run.

- A pair of words: an unordered pair that never meets in training, neither in a scene of any size nor
  in a question (asking for one word in a picture of the other).
- A drawing: of each reviewed word with several drawings in one object set a third of them, but at least
  one. Each set decides for itself, so a drawing is held out alike alone and beside another set.
- A single scene: for scenes of one object, a combination of word, background, place and size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from prismcap.data.scenes.graph import Background
from prismcap.data.scenes.objects import ObjectSet, Stamp

Split = Literal["train", "unseen_pairs", "unseen_stamps"]

SALT = "prismcap scenes 1"
PAIR_SHARE = 0.1
SINGLE_SHARE = 0.15
_SCALE = 1 << 64


def fraction(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the parts."""
    text = "\n".join((SALT, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / _SCALE


def pair_held_out(first: str, second: str) -> bool:
    """Whether two different words never meet in training. The order does not matter."""
    if first == second:
        return False
    return fraction("pair", *sorted((first, second))) < PAIR_SHARE


def meets_held_out(word: str, others: Iterable[str]) -> bool:
    """Whether `word` makes a held-out pair with any of the others."""
    return any(pair_held_out(word, other) for other in others)


def single_held_out(word: str, background: Background, place: str, size: str) -> bool:
    """Whether this scene of one object is kept for evaluation."""
    return fraction("single", word, background.color, background.texture, place, size) < SINGLE_SHARE


def held_out_drawings(objects: ObjectSet) -> frozenset[str]:
    """Ids of the drawings that never occur in training, whichever sets are loaded together.

    Every word keeps at least one of its drawings in each set for training.
    """
    groups: dict[tuple[str, str], list[Stamp]] = {}
    for stamp in objects.stamps:
        groups.setdefault((stamp.word, stamp.id.partition(":")[0]), []).append(stamp)
    held: set[str] = set()
    for stamps in groups.values():
        if len(stamps) < 2 or not any(stamp.reviewed for stamp in stamps):
            continue
        ordered = sorted(stamps, key=lambda stamp: fraction("drawing", stamp.id))
        held.update(stamp.id for stamp in ordered[: max(1, len(stamps) // 3)])
    return frozenset(held)


def limit_words(objects: ObjectSet, limit: int | None) -> ObjectSet:
    """Keep `limit` words with all their drawings: first those with held-out drawings, then by hash."""
    if limit is None or limit >= len(objects.words):
        return objects
    held = held_out_drawings(objects)
    testable = {stamp.word for stamp in objects.stamps if stamp.id in held}
    ordered = sorted(objects.words, key=lambda word: (word not in testable, fraction("word", word)))
    kept = set(ordered[:limit])
    return ObjectSet(objects.name, tuple(stamp for stamp in objects.stamps if stamp.word in kept))
