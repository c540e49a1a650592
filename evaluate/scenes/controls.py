"""The two controls: what a model scores without the picture that belongs to the item."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
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


def shuffled_partners(
    keys: Sequence[Hashable],
    seed: int,
    what: str = "items",
    right_for: Callable[[int, int], bool] | None = None,
) -> list[int]:
    """For each item the index of another whose key differs: whose picture it is shown.

    Where no key makes up more than half of the items, every picture is used exactly once (items sorted
    by key and rotated past the largest group). Otherwise that is impossible, and partners are drawn at
    random from the items of other keys. The same seed gives the same partners.
    right_for(item, other): whether the other's picture makes the item's truth right all the same, though
    the keys differ. Such partners are exchanged with another item's, else replaced by a random one that
    does not; an item for which there is none keeps its partner.
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
    if right_for is not None:
        _exchange(partners, right_for, rng)
    return partners


def _exchange(partners: list[int], right_for: Callable[[int, int], bool], rng: random.Random) -> None:
    """Mend in place the partners whose picture is right for the item."""
    for index in range(len(partners)):
        if not right_for(index, partners[index]):
            continue
        others = rng.sample(range(len(partners)), len(partners))
        for other in others:
            if not right_for(index, partners[other]) and not right_for(other, partners[index]):
                partners[index], partners[other] = partners[other], partners[index]
                break
        else:
            partners[index] = next(
                (other for other in others if not right_for(index, other)), partners[index]
            )
