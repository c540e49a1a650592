from __future__ import annotations

import pytest

from prismcap.data.scenes.graph import Background, Place, SceneGraph, SceneObject
from prismcap.data.scenes.text import KINDS, long_caption, short_caption
from prismcap.evaluate.scenes.scoring import RIGHT, score, score_short_caption


def scene(*objects: tuple[str, Place], unseen: str | None = None) -> SceneGraph:
    items = tuple(
        SceneObject(word, f"set:{word}", "animal", place, "large", (0, 0, 8, 8), unseen=word == unseen)
        for word, place in objects
    )
    return SceneGraph(64, Background("blue", "plain"), items)


TWO = scene(("tiger", "left"), ("hammer", "right"))


@pytest.mark.parametrize(
    ("text", "right", "objects", "places"),
    [
        ("A tiger on the left and a hammer on the right.", True, True, True),
        ("a hammer on the right and a tiger on the left", True, True, True),  # another order
        ("A hammer on the left and a tiger on the right.", False, True, False),  # swapped
        ("A lion on the left and a hammer on the right.", False, False, True),  # one wrong object
        ("A lion on the left and a hammer on the left.", False, False, False),
        ("A tiger on the left, a boat in the middle and a hammer on the right.", False, False, True),  # extra
        ("A tiger on the left.", False, False, True),  # one missing
        ("A lion on the left and a boat on the right.", False, False, False),  # both wrong
        ("A tiger on the left and a hammer on the right. It is", False, False, True),  # runs on
        ("A tiger on the left and a tiger on the left.", False, False, True),  # said twice
        ("A tiger on the left and a tiger on the right and a hammer on the right.", False, False, False),
        ("", False, False, False),
        ("tiger hammer", False, False, False),
    ],
)
def test_short_caption(text: str, right: bool, objects: bool, places: bool) -> None:
    expected = {RIGHT: right, "objects_right": objects, "places_right": places}
    assert score_short_caption(text, TWO) == expected


def test_right_means_both_parts_are() -> None:
    for other in (scene(("hammer", "left"), ("tiger", "right")), scene(("tiger", "top"), ("cat", "bottom"))):
        for said in (TWO, other):
            flags = score_short_caption(short_caption(said), TWO)
            assert flags[RIGHT] == (flags["objects_right"] and flags["places_right"]) == (said is TWO)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("A tiger on the left and a hammer on the right.", True),
        ("A tiger on the right and a hammer on the left.", True),  # the word counts, not its place
        ("A tiger on the left and a saw on the right.", True),
        ("A lion on the left and a hammer on the right.", False),
        ("A tiger.", False),  # no caption at all
    ],
)
def test_unseen_drawing_is_right_when_its_word_is_said(text: str, right: bool) -> None:
    graph = scene(("tiger", "left"), ("hammer", "right"), unseen="tiger")
    assert score_short_caption(text, graph)["object_right"] is right
    assert "object_right" not in score_short_caption(text, TWO)


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_text_is_right_and_empty_text_is_wrong(kind: str) -> None:
    truths = {"short": short_caption(TWO), "long": long_caption(TWO), "place": "A tiger.", "count": "Two."}
    truth = truths.get(kind, "Yes.")
    assert score(kind, truth, truth, TWO)[RIGHT]  # type: ignore[arg-type]
    assert score(kind, f" {truth}\n", truth, TWO)[RIGHT]  # type: ignore[arg-type]
    assert not score(kind, "", truth, TWO)[RIGHT]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "text", "truth", "right"),
    [
        ("yes_no", "Yes", "Yes.", True),
        ("yes_no", "No.", "Yes.", False),
        ("yes_no", "Yes. No.", "Yes.", False),
        ("count", "2", "Two.", True),
        ("count", "Three.", "Two.", False),
        ("place", "a tiger", "A tiger.", True),
        ("place", "A tiger and a hammer.", "A tiger.", False),
    ],
)
def test_answers(kind: str, text: str, truth: str, right: bool) -> None:
    assert score(kind, text, truth, TWO)[RIGHT] is right  # type: ignore[arg-type]
