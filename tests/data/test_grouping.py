"""Grouped steps: the properties of LLaVA-1.5's sampler, held against a small one written from its text."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from prismcap.data.grouping import STEPS_SORTED_TOGETHER, GroupedOrder
from prismcap.data.length_mixes import load_length_mix


def reference(has_image: list[bool], size: int, seed: int) -> list[list[int]]:
    """LLaVA-1.5, as its paper and trainer describe it: pictures and text apart, each shuffled and cut into
    batches; the last batch of either, whole or not, makes one more at the end; the others in random order."""
    rng = random.Random(seed)
    batches, last = [], []
    for kind in (True, False):
        own = [i for i, has in enumerate(has_image) if has == kind]
        rng.shuffle(own)
        cut = [own[at : at + size] for at in range(0, len(own), size)]
        batches += cut[:-1]
        last += cut[-1] if cut else []
    rng.shuffle(batches)
    tail = [last[at : at + size] for at in range(0, len(last), size)]
    return [*batches, *tail]


def num_pure(steps: list[list[int]], has_image: list[bool]) -> int:
    return sum(len({has_image[i] for i in step}) == 1 for step in steps)


def order_of(seed: int, num: int, size: int, by_modality: bool) -> tuple[GroupedOrder, list[int], list[bool]]:
    samples = load_length_mix("mix665k").sample(num, 576, seed)
    rng = random.Random(seed)
    tokens = [sample.tokens for sample in samples]
    has_image = [rng.random() < 0.7 for _ in samples]
    return GroupedOrder(np.array(tokens), np.array(has_image), size, seed, by_modality), tokens, has_image


def steps_of_run(order: GroupedOrder, num: int, size: int, epochs: int) -> list[list[int]]:
    places = [order.place(epoch, offset) for epoch in range(epochs) for offset in range(num)]
    return [places[at : at + size] for at in range(0, len(places), size)]


@pytest.mark.parametrize(("num", "size"), [(100, 8), (96, 8), (1000, 32), (7, 8), (8, 8), (23, 1), (50, 49)])
@pytest.mark.parametrize("by_modality", [True, False])
def test_an_epoch_is_every_sample_once(num: int, size: int, by_modality: bool) -> None:
    for seed in range(3):
        order, _, _ = order_of(seed, num, size, by_modality)
        epochs = [[order.place(epoch, offset) for offset in range(num)] for epoch in range(4)]
        assert all(sorted(epoch) == list(range(num)) for epoch in epochs)
        if num > 8:
            assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize(("num", "size"), [(1000, 32), (960, 32), (333, 10), (64, 16)])
def test_steps_are_of_one_modality_as_in_the_reference(num: int, size: int) -> None:
    for seed in range(5):
        order, _, has_image = order_of(seed, num, size, by_modality=True)
        expected = reference(has_image, size, seed)
        assert Counter(i for step in expected for i in step) == Counter(range(num)), "the reference is sound"
        steps = steps_of_run(order, num, size, epochs=1)
        # whole steps of one kind: as many as the counts of both allow, which the reference may miss by its
        # last batches
        possible = sum(has_image) // size + (num - sum(has_image)) // size
        pure = num_pure([step for step in steps if len(step) == size], has_image)
        assert pure >= possible
        assert pure >= num_pure([step for step in expected if len(step) == size], has_image) - 1
        # shuffled: kinds do not come in blocks
        kinds = [has_image[step[0]] for step in steps[:possible]]
        changes = sum(a != b for a, b in pairwise(kinds))
        assert len(kinds) < 20 or changes > 3


def test_steps_stay_whole_over_the_ends_of_epochs() -> None:
    num, size, epochs = 333, 10, 5
    order, _, has_image = order_of(1, num, size, by_modality=True)
    steps = steps_of_run(order, num, size, epochs)
    # an epoch loses two steps at most to its ends, and one to what is left of both kinds
    assert num_pure(steps, has_image) >= epochs * (num // size - 3)
    for epoch in range(epochs):
        begin = -(-epoch * num // size)
        inside = steps[begin : (epoch + 1) * num // size]
        mixed = [step for step in inside if len({has_image[i] for i in step}) > 1]
        assert len(mixed) <= 1


def test_a_run_may_begin_anywhere() -> None:
    for by_modality in (True, False):
        order, _, _ = order_of(2, 333, 10, by_modality)
        walked = [order.place(epoch, offset) for epoch in range(3) for offset in range(333)]
        fresh, _, _ = order_of(2, 333, 10, by_modality)
        assert [fresh.place(*divmod(position, 333)) for position in range(998, 400, -1)] == walked[998:400:-1]
        other = GroupedOrder(order.tokens, order.has_image, 10, 3, by_modality)
        assert [other.place(0, i) for i in range(333)] != walked[:333]


def test_length_grouping_makes_steps_of_like_length() -> None:
    num, size = 8000, 16
    order, tokens, _ = order_of(0, num, size, by_modality=False)
    steps = steps_of_run(order, num, size, epochs=1)

    def padded(found: list[list[int]]) -> int:
        return sum(len(step) * max(tokens[i] for i in step) for step in found)

    plain = random.Random(0).sample(range(num), num)
    shuffled = padded([plain[at : at + size] for at in range(0, num, size)])
    assert padded(steps) < 1.05 * sum(tokens) < 0.8 * shuffled
    # random, within blocks of 50 steps, and not one sorted list: neighbours in length are far apart
    means = [sum(tokens[i] for i in step) / size for step in steps]
    assert STEPS_SORTED_TOGETHER == 50
    assert sum(a < b for a, b in pairwise(means)) > len(means) / 3
