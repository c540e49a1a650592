from __future__ import annotations

import random

import numpy as np
import pytest

from prismcap.data.schema import DataError
from prismcap.evaluate.scenes.controls import BlankImage, shuffled_partners


def keys_of(counts: dict[str, int], seed: int = 0) -> list[str]:
    keys = [key for key, count in counts.items() for _ in range(count)]
    random.Random(seed).shuffle(keys)
    return keys


@pytest.mark.parametrize(
    "counts",
    [
        {f"scene {i}": 1 for i in range(200)},
        {"yes": 100, "no": 100},
        {"one": 70, "two": 60, "three": 50, "four": 20},
        {"a": 1, "b": 1},
        {"a": 2, "b": 1, "c": 1},
    ],
)
def test_partners_are_a_derangement_by_key(counts: dict[str, int]) -> None:
    keys = keys_of(counts)
    partners = shuffled_partners(keys, seed=3)
    assert sorted(partners) == list(range(len(keys))), "every picture is used exactly once"
    assert all(keys[i] != keys[partner] for i, partner in enumerate(partners))
    assert partners == shuffled_partners(keys, seed=3)


@pytest.mark.parametrize("counts", [{"zero": 150, "one": 50}, {"a": 5, "b": 1}])
def test_a_key_of_more_than_half_still_gets_other_keys(counts: dict[str, int]) -> None:
    keys = keys_of(counts)
    partners = shuffled_partners(keys, seed=0)
    assert all(keys[i] != keys[partner] for i, partner in enumerate(partners))


def test_a_plain_permutation_would_be_caught() -> None:
    """A planted fault: shuffling without looking at keys leaves many items their own answer."""
    keys = keys_of({"yes": 100, "no": 100})
    plain = list(range(200))
    random.Random(3).shuffle(plain)
    assert any(keys[i] == keys[partner] for i, partner in enumerate(plain))


def test_partners_depend_on_the_seed_and_not_on_order_alone() -> None:
    keys = keys_of({f"scene {i}": 1 for i in range(50)})
    partners = shuffled_partners(keys, seed=0)
    assert partners != shuffled_partners(keys, seed=1)
    shifts = {(partner - i) % 50 for i, partner in enumerate(partners)}
    assert len(shifts) > 5, "neighbours in the split (which may share words) are not paired by a fixed shift"


def test_equal_keys_cannot_be_shuffled() -> None:
    with pytest.raises(DataError, match="same answer"):
        shuffled_partners(["yes"] * 5, seed=0)


def test_blank_is_plain_grey() -> None:
    pixels = np.asarray(BlankImage().load())
    assert pixels.shape == (64, 64, 3) and (pixels == 128).all()
    assert BlankImage().fingerprint() == BlankImage().fingerprint() != BlankImage(level=0).fingerprint()
