"""The two controls: what a model scores without the picture that belongs to the item."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from PIL import Image

from prismcap.data.schema import DataError


@dataclass(frozen=True)
class BlankImage:
    """A plain mid-grey picture: the same for every item, so it can tell nothing about any."""

    size_px: int = 64
    level: int = 128

    def load(self) -> Image.Image:
        return Image.new("RGB", (self.size_px, self.size_px), (self.level,) * 3)

    def fingerprint(self) -> str:
        return hashlib.blake2b(f"blank {self.size_px} {self.level}".encode(), digest_size=16).hexdigest()


def shuffled_partners(keys: Sequence[Hashable], seed: int, what: str = "items") -> list[int]:
    """For each item the index of another whose key differs: whose picture it is shown.

    Where no key makes up more than half of the items, every picture is used exactly once (items sorted
    by key and rotated past the largest group). Otherwise that is impossible, and partners are drawn at
    random from the items of other keys. The same seed gives the same partners.
    Raises DataError when all keys are equal.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    if len(groups) < 2:
        raise DataError(
            f"{what}: all {len(keys)} have the same answer, so no picture of another item can stand in as a "
            "control. Evaluate more items, or a more varied split."
        )
    rng = random.Random(seed)
    members = list(groups.values())
    rng.shuffle(members)
    for group in members:
        rng.shuffle(group)
    order = [index for group in members for index in group]
    largest = max(len(group) for group in members)
    partners = [0] * len(keys)
    for position, index in enumerate(order):
        partner = order[(position + largest) % len(order)]
        if keys[partner] == keys[index]:
            partner = rng.choice([other for other in order if keys[other] != keys[index]])
        partners[index] = partner
    return partners
