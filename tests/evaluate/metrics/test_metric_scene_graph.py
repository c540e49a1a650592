"""What texts say of scenes, and the figures of it, counted by hand."""

from __future__ import annotations

import random

import pytest
from metric_items import build, by_name, scene, values_of

from prismcap.data.scenes.compose import COLORS, TEXTURES
from prismcap.data.scenes.graph import LAYOUTS, SceneGraph
from prismcap.data.scenes.text import long_caption, short_caption
from prismcap.evaluate.metrics._contract import CaptionItem
from prismcap.evaluate.metrics._scene_text import read_scene, scene_statements
from prismcap.evaluate.metrics._vocabulary import scene_vocabulary

TWO = scene(("tiger", "left"), ("hammer", "right"))


def some_scenes(count: int = 300) -> list[SceneGraph]:
    rng = random.Random(0)
    words = sorted(scene_vocabulary().terms.names)
    found = []
    for _ in range(count):
        places = rng.choice(LAYOUTS[rng.choice(list(LAYOUTS))])
        pairs = zip(rng.sample(words, len(places)), places, strict=True)
        background = f"{rng.choice(TEXTURES)} {rng.choice(list(COLORS))}"
        found.append(scene(*pairs, background=background, size=rng.choice(("small", "large"))))
    return found


def read(text: str) -> tuple[set[str], set[tuple[str, str]], int | None, str | None]:
    said = read_scene(text, scene_vocabulary().terms)
    return said.words, said.pairs, said.number, said.background


def test_the_captions_of_a_scene_are_read_back_whole() -> None:
    for graph in some_scenes():
        words, pairs, count = set(graph.words), set(graph.pairs()), len(graph.objects)
        assert read(short_caption(graph)) == (words, pairs, count, None)
        assert read(long_caption(graph)) == (words, pairs, count, graph.background.name)


def test_unknown_words_in_the_form_of_a_caption_are_objects_that_are_said() -> None:
    assert read("A blorb on the left and a tiger on the right.")[1] == {("blorb", "left"), ("tiger", "right")}
    assert read("There are two objects on a plain red background. On the left is a small blorb.") == (
        {"blorb"},
        {("blorb", "left")},
        2,
        "plain red",
    )
    again = "A blorb on the left and a blorb on the left."
    assert read(again)[:3] == ({"blorb"}, {("blorb", "left")}, 1)


FREE = [
    ("The picture shows a tiger on the left and a hammer on the right.", "tiger left, hammer right"),
    ("On the left there is a tiger, on the right a hammer.", "tiger left, hammer right"),
    ("On the left there is a tiger, and a hammer is on the right.", "tiger left, hammer right"),
    ("There is a tiger on the left and on the right is a hammer.", "tiger left, hammer right"),
    ("On the left are a tiger and a drum, on the right a hammer.", "tiger left, drum, hammer right"),
    (
        "A big tiger sits in the upper-left corner; two apples lie at the bottom.",
        "tiger top left, apple bottom",
    ),
    ("A tiger in the center of the picture", "tiger middle"),
    ("A tiger on the left side of the hammer", "tiger, hammer"),
    ("A tiger at the top left of the hammer", "tiger, hammer"),
    ("A top hat at the top, in the lower right-hand corner a drum", "top hat top, drum bottom right"),
    ("A tiger and a hammer", "tiger, hammer"),
    ("A person is standing there.", ""),
]


@pytest.mark.parametrize(("text", "said"), FREE)
def test_free_text_is_read_by_words_and_places(text: str, said: str) -> None:
    words, pairs, _, _ = read(text)
    found = {f"{word} {place}" for word, place in pairs} | (words - {word for word, _ in pairs})
    assert found == set(filter(None, said.split(", ")))


@pytest.mark.parametrize(
    ("text", "number", "background"),
    [
        ("Three objects on a grey checkered background.", 3, "checked gray"),
        ("The background is dark green with dots. There are 4 different things: a drum.", 4, "dotted green"),
        ("A blue background. A drum and a tiger.", 2, "plain blue"),
        ("On an orange background stands a drum.", 1, None),
        ("The background is nice.", None, None),
        ("", None, None),
    ],
)
def test_number_and_background(text: str, number: int | None, background: str | None) -> None:
    assert read(text)[2:] == (number, background)


def test_counted_by_hand() -> None:
    items = [
        # tiger right, drum wrong: one of two words, no place; two objects; nothing of the background
        CaptionItem("1", "A tiger on the right and a drum on the left.", graph=TWO),
        # one of two, at its place; the number is wrong, the background right
        CaptionItem(
            "2", "There is one object on a striped blue background. On the left is a large tiger.", graph=TWO
        ),
        CaptionItem("3", "", graph=TWO),
    ]
    wanted = {
        "objects_precision": 2 / 3,
        "objects_recall": 2 / 6,
        "objects_f1": 4 / 9,
        "places_precision": 1 / 3,
        "places_recall": 1 / 6,
        "places_f1": 2 / 9,
        "number_precision": 1 / 2,
        "number_recall": 1 / 3,
        "number_f1": 2 / 5,
        "background_precision": 1.0,
        "background_recall": 1 / 3,
        "background_f1": 2 / 4,
    }
    assert values_of(build("scene_graph"), items) == pytest.approx(wanted)
    figures = by_name(build("scene_graph").figures(items))
    assert figures["objects_precision"].values == [0.5, 1.0, None]
    assert figures["objects_f1"].values == [0.5, pytest.approx(2 / 3), 0.0]
    assert figures["background_precision"].values == [None, 1.0, None]
    assert "background_precision" not in values_of(build("scene_graph"), items[:1])


def test_right_captions_are_perfect_but_for_the_background_that_short_ones_leave_out() -> None:
    graphs = some_scenes(40)
    long = [CaptionItem(str(i), long_caption(graph), graph=graph) for i, graph in enumerate(graphs)]
    assert set(values_of(build("scene_graph"), long).values()) == {1.0}
    short = [CaptionItem(str(i), short_caption(graph), graph=graph) for i, graph in enumerate(graphs)]
    found = values_of(build("scene_graph"), short)
    assert {name for name, one in found.items() if one != 1.0} == {"background_recall", "background_f1"}


def test_statements_are_sentences() -> None:
    graph = scene(("grapes", "top"), ("cheese", "bottom"), background="plain red")
    assert [one.text for one in scene_statements(graph)] == [
        "There are some grapes.",
        "There is some cheese.",
        "The grapes are at the top.",
        "The cheese is at the bottom.",
        "There are two objects.",
        "The background is plain red.",
    ]
    assert scene_statements(scene(("tiger", "middle")))[2].text == "There is one object."
