"""Scenes: deterministic, drawn whole and visible, with texts that say exactly what is there."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from prismcap.configs.errors import ConfigError
from prismcap.data.scenes import compose as compose_module
from prismcap.data.scenes.compose import COLORS, TEXTURES, SceneImage, background, compose
from prismcap.data.scenes.graph import LAYOUTS, Background
from prismcap.data.scenes.make import CELLS, SceneMaker
from prismcap.data.scenes.objects import SETS, load_objects, objects_root
from prismcap.data.scenes.splits import held_out_drawings, pair_held_out
from prismcap.data.scenes.text import (
    CATEGORY_PLURALS,
    KINDS,
)
from prismcap.data.scenes.words import (
    WORD_PATTERN,
    caption_word,
    manners,
    with_article,
    word_list,
)
from prismcap.data.sources import scenes
from prismcap.data.sources._contract import SourceContext

ALL_COUNTS = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
ALL_TASKS = {kind: 1 for kind in KINDS}


def source(seed: int = 0, **options: object) -> scenes.SceneItems:
    values = {"num_objects": ALL_COUNTS, "num_scenes": 300, "tasks": ALL_TASKS, **options}
    return scenes.build(scenes.Options.model_validate(values), SourceContext(seed=seed))


# ---- words and drawings


@pytest.mark.parametrize("objects", ["tuxpaint", "openmoji", "both"])
def test_enough_words_have_a_held_out_drawing(objects: str) -> None:
    found = load_objects(objects)
    held = held_out_drawings(found)
    by_word = found.by_word()
    testable = {word for word, stamps in by_word.items() if any(stamp.id in held for stamp in stamps)}
    assert len(testable) >= 30
    for word in testable:
        assert any(stamp.id not in held for stamp in by_word[word])
        assert any(stamp.reviewed for stamp in by_word[word])


@pytest.mark.parametrize("objects", ["tuxpaint", "openmoji"])
def test_word_lists_name_what_exists(objects: str) -> None:
    found = load_objects(objects)
    ids = {stamp.id.removeprefix(f"{objects}:") for stamp in found.stamps}
    words = word_list(objects)
    assert set(words.names) <= ids and not words.excluded & ids
    assert set(words.categories) <= set(found.words)
    assert set(words.categories.values()) <= {*CATEGORY_PLURALS, "thing", "unclear"}
    for word, stamps in found.by_word().items():
        assert WORD_PATTERN.fullmatch(word)
        assert len(stamps) == 1 or all(stamp.reviewed for stamp in stamps), f"{word}: not reviewed"
        assert len({stamp.pixels for stamp in stamps}) == len(stamps)


@pytest.mark.parametrize("objects", ["tuxpaint", "openmoji", "both"])
def test_a_word_has_one_category(objects: str) -> None:
    for word, stamps in load_objects(objects).by_word().items():
        assert len({stamp.category for stamp in stamps}) == 1, word


def test_every_word_said_specially_exists() -> None:
    known = set(load_objects("both").words)
    assert manners().plural | manners().mass | manners().overlap.keys() <= known
    assert not manners().plural & manners().mass


def test_plain_captions_only() -> None:
    assert caption_word("A tennis ball.") == "tennis ball"
    assert caption_word("Some blueberries.") == "blueberries"
    assert caption_word("A Jack-o’-lantern.") == "jack-o'-lantern"
    for joke in (
        "Boom!!!",
        "Eat your broccoli!",
        "A wheelie bin! Give me your trash!",
        "Tux and spider",
        "The Sun.",
    ):
        assert caption_word(joke) is None
    assert caption_word("A sword in the stone.") is None  # five words
    assert caption_word("A red and white flag.") is None  # "and" parts the objects of a caption


def test_articles() -> None:
    said = [with_article(w) for w in ("tiger", "apple", "unicorn", "grapes", "cheese", "umbrella")]
    assert said == ["a tiger", "an apple", "a unicorn", "some grapes", "some cheese", "an umbrella"]


def test_held_out_pairs_have_no_order() -> None:
    words = load_objects("tuxpaint").words
    share = np.mean([pair_held_out(a, b) for a in words for b in words if a != b])
    assert 0.08 < share < 0.12
    assert all(pair_held_out(a, b) == pair_held_out(b, a) for a in words[:40] for b in words)


# ---- pictures


def test_cells_of_a_layout_do_not_touch() -> None:
    for count, layouts in LAYOUTS.items():
        for places in layouts:
            cells = [CELLS[count][place] for place in places]
            for i, (left, top, right, bottom) in enumerate(cells):
                assert 0 < left < right < 1 and 0 < top < bottom < 1
                for other in cells[:i]:
                    apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
                    assert apart


def test_two_objects_leave_the_middle_empty() -> None:
    """A third object would stand there."""
    for places in LAYOUTS[2]:
        for place in places:
            left, top, right, bottom = CELLS[2][place]
            low, high = (left, right) if place in ("left", "right") else (top, bottom)
            assert high <= 0.45 or low >= 0.55


@pytest.mark.parametrize("image_px", [96, 192, 320])
def test_objects_are_whole_and_apart(image_px: int) -> None:
    found = source(tasks={"short": 1}, image_px=image_px, num_scenes=400, objects="both")
    for i in range(len(found)):
        graph = found.graph(i)
        taken = np.zeros((image_px, image_px), dtype=int)
        for item in graph.objects:
            left, top, width, height = item.box
            assert left >= 0 and top >= 0 and left + width <= image_px and top + height <= image_px
            taken[top : top + height, left : left + width] += 1
        assert taken.max() == 1


@pytest.mark.parametrize("objects", ["tuxpaint", "openmoji"])
def test_objects_show_on_their_background(objects: str) -> None:
    found = source(objects=objects, tasks={"short": 1}, num_scenes=150)
    for i in range(len(found)):
        graph = found.graph(i)
        picture = np.asarray(compose(graph, objects_root()), dtype=float)
        plain = np.asarray(background(graph.background.color, graph.background.texture, 192), dtype=float)
        changed = np.abs(picture - plain).max(-1) > 40
        for item in graph.objects:
            left, top, width, height = item.box
            inside = changed[top : top + height, left : left + width]
            assert inside.sum() > 60, f"{item.stamp} on {graph.background.name}: {inside.sum()} pixels"
            changed[top : top + height, left : left + width] = False
        assert not changed.any()  # nothing is drawn outside the boxes


def test_backgrounds_differ() -> None:
    pictures = {background(color, texture, 96).tobytes() for color in COLORS for texture in TEXTURES}
    assert len(pictures) == len(COLORS) * len(TEXTURES)


def test_large_is_larger_than_small() -> None:
    found = source(tasks={"short": 1}, num_objects={4: 1}, num_scenes=300)
    sides: dict[str, list[int]] = {"small": [], "large": []}
    for i in range(len(found)):
        for item in found.graph(i).objects:
            sides[item.size].append(max(item.box[2:]))
    assert max(sides["small"]) < min(sides["large"])


def test_scenes_are_a_function_of_seed_and_index() -> None:
    first, second, other = source(seed=1), source(seed=1), source(seed=2)
    for i in (7, 3, 299, 0):
        assert first.item(i) == second.item(i)
        assert first[i].images[0].load().tobytes() == second[i].images[0].load().tobytes()
    assert [first.graph(i) for i in range(0, 50, 5)] != [other.graph(i) for i in range(0, 50, 5)]
    assert pickle.loads(pickle.dumps(first)).item(11) == first.item(11)  # noqa: S301
    with pytest.raises(IndexError):
        first.item(len(first))


def test_exchanges_of_a_scene_share_its_picture() -> None:
    found = source()
    items = [found.item(i) for i in range(len(KINDS))]
    assert [item.kind for item in items] == list(KINDS)
    assert {item.scene for item in items} == {0} and found.item(len(KINDS)).scene == 1
    assert len({item.sample.images for item in items}) == 1
    assert len({item.sample.id for item in items}) == len(KINDS)


def test_every_word_comes_up() -> None:
    found = source(tasks={"short": 1}, num_scenes=260, num_objects={1: 1})
    words = {word for i in range(len(found)) for word in found.graph(i).words}
    assert words == set(load_objects("tuxpaint").words)


def test_fingerprint_follows_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    found = source()
    image = found[0].images[0]
    assert isinstance(image, SceneImage)
    assert image.fingerprint() == source()[0].images[0].fingerprint()
    graph = image.graph
    elsewhere = replace(
        graph, background=Background("black" if graph.background.color == "red" else "red", "plain")
    )
    mirrored = replace(graph.objects[0], mirrored=not graph.objects[0].mirrored)
    variants = [
        replace(image, graph=elsewhere),
        replace(image, graph=replace(graph, objects=(mirrored, *graph.objects[1:]))),
        replace(image, pixels=("0" * 32, *image.pixels[1:])),
    ]
    prints = {variant.fingerprint() for variant in variants}
    assert len(prints) == len(variants) and image.fingerprint() not in prints
    before = image.fingerprint()
    monkeypatch.setattr(compose_module, "_drawn_by", lambda: "another version of the code")
    assert image.fingerprint() != before


def test_drawing_is_fast() -> None:
    found = source(tasks={"short": 1})
    graphs = [found.graph(i) for i in range(100)]
    for graph in graphs:
        compose(graph, objects_root())
    start = time.perf_counter()
    for graph in graphs:
        compose(graph, objects_root())
    assert (time.perf_counter() - start) / len(graphs) < 0.05  # about 2 ms on an idle core


# ---- the source


def test_missing_set_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="prismcap fetch stamps"):
        source()
    with pytest.raises(ConfigError, match="prismcap fetch openmoji"):
        source(objects="openmoji")


def test_broken_index_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path))
    index = tmp_path / "objects" / "tuxpaint" / "index.json"
    index.parent.mkdir(parents=True)
    index.write_text("{")
    with pytest.raises(ConfigError, match=r"index\.json: not a readable index"):
        source()
    index.write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="format 99, expected 1"):
        source()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_objects": {5: 1}}, "from 1 to 4 objects"),
        ({"num_objects": {2: 0}}, "from 1 to 4 objects"),
        ({"tasks": {}}, "at least one exchange"),
        ({"tasks": {"haiku": 1}}, "short"),
        ({"split": "test"}, "unseen_pairs"),
        ({"object_limit": 3}, "object_limit"),
        ({"objets": "tuxpaint"}, "objets"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        scenes.Options.model_validate(options)


def test_a_list_of_counts_weighs_them_equally() -> None:
    assert scenes.Options.model_validate({"num_objects": [1, 3]}).num_objects == {1: 1.0, 3: 1.0}
    found = source(num_objects=[1, 3], tasks={"short": 1}, num_scenes=400)
    counts = Counter(len(found.graph(i).objects) for i in range(len(found)))
    assert counts.keys() == {1, 3} and 150 < counts[1] < 250


def test_object_limit_keeps_the_testable_words() -> None:
    found = source(object_limit=80, num_scenes=200)
    assert isinstance(found.maker, SceneMaker)
    assert len(found.maker.words) == 80
    assert set(found.maker.unseen) == set(source().maker.unseen)


def test_sets_are_what_the_options_allow() -> None:
    allowed = scenes.Options.model_fields["objects"].annotation
    assert set(allowed.__args__) == set(SETS)  # type: ignore[union-attr]
