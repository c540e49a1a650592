from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from prismcap.data.scenes.graph import Background, Place, SceneGraph, SceneObject
from prismcap.data.scenes.text import (
    Kind,
    Text,
    caption_text,
    count_question,
    place_question,
    yes_no_question,
)
from prismcap.data.schema import DataError, Sample
from prismcap.evaluate import run
from prismcap.evaluate.scenes.controls import BlankImage, shuffled_partners
from prismcap.evaluate.scenes.items import Item


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


def test_partners_that_are_right_all_the_same_are_exchanged() -> None:
    keys = list(range(60))

    def right_for(index: int, other: int) -> bool:
        return index // 6 == other // 6

    partners = shuffled_partners(keys, 0, "items", right_for)
    assert sorted(partners) == keys, "every picture is still used exactly once"
    assert not any(right_for(i, partner) for i, partner in enumerate(partners))
    assert any(right_for(i, partner) for i, partner in enumerate(shuffled_partners(keys, 0))), "without it"
    assert shuffled_partners([1, 2], 0, "items", lambda *_: True) == [1, 0], "none is better"


CATEGORIES = {"tiger": "animal", "dog": "animal", "apple": "food", "cheese": "food", "boat": "vehicle"}


def scene_items(kind: Kind, unseen: bool = False, num: int = 60) -> list[Item]:
    """Scenes of two objects of few words, each asked for one text."""
    rng = random.Random(1)
    places: tuple[Place, Place] = ("left", "right")
    items = []
    for number in range(num):
        words = rng.sample(list(CATEGORIES), 2)
        graph = SceneGraph(
            64,
            Background("blue", "plain"),
            tuple(
                SceneObject(
                    word,
                    f"set:{word}",
                    CATEGORIES[word],
                    place,
                    "large",
                    (number, 0, 8, 8),
                    unseen=unseen and not i,
                )
                for i, (word, place) in enumerate(zip(words, places, strict=True))
            ),
        )
        text = asked(graph, kind, rng)
        items.append(Item("s", str(number), kind, text.prompt, text.answer, graph, Sample("", (), (), "")))
    return items


def asked(graph: SceneGraph, kind: Kind, rng: random.Random) -> Text:
    if kind == "place":
        return place_question(graph, rng.choice(graph.objects).place)
    if kind == "count":
        return count_question(graph, rng.choice(("animal", "food", "vehicle")))
    if kind == "yes_no":
        return yes_no_question(graph, rng.choice(list(CATEGORIES)))
    return caption_text(graph, kind)


def answer_of(item: Item, other: Item) -> object:
    """What is right for the item's question in the other's scene, said without the code under test."""
    words = {thing.place: thing.word for thing in other.graph.objects}
    if item.kind == "place":
        return words["left" if "left" in item.prompt else "right"]
    if item.kind == "count":
        (category,) = [c for c, said in SAID.items() if said in item.prompt]
        return sum(CATEGORIES[word] == category for word in words.values())
    target = next(thing.word for thing in item.graph.objects if thing.unseen)
    return target in words.values()


SAID = {"animal": "animals", "food": "things to eat", "vehicle": "vehicles"}


@pytest.mark.parametrize(("kind", "unseen"), [("place", False), ("count", False), ("short", True)])
def test_another_items_picture_has_another_answer_to_the_same_question(kind: Kind, unseen: bool) -> None:
    items = scene_items(kind, unseen)

    def still_right(partners: list[int]) -> list[int]:
        pairs = [(item, items[partner]) for item, partner in zip(items, partners, strict=True)]
        return [i for i, (item, other) in enumerate(pairs) if answer_of(item, other) == answer_of(item, item)]

    assert still_right(run._partners(items, seed=0)) == []
    # a planted fault: items of other answers alone leave some of them a picture in which theirs is right
    assert still_right(shuffled_partners([item.key for item in items], seed=0))


def test_yes_no_and_captions_keep_their_partners() -> None:
    for items in (scene_items("yes_no"), scene_items("short", num=30)):
        partners = run._partners(items, seed=0)
        assert all(items[i].key != items[p].key for i, p in enumerate(partners))
    graph = scene_items("yes_no")[0].graph
    yes, no = (
        Item("s", word, "yes_no", *said(yes_no_question(graph, word)), graph, Sample("", (), (), ""))
        for word in (graph.words[0], next(word for word in CATEGORIES if word not in graph.words))
    )
    assert yes.key != no.key and yes.right_for(no), "the same picture is no other picture"
    assert all(a.right_for(b) == b.right_for(a) for a, b in itertools.product((yes, no), repeat=2))


def said(text: Text) -> tuple[str, str]:
    return text.prompt, text.answer
