"""Which words name which object: whole names, the longest first, in any number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from prismcap.configs.errors import DataError
from prismcap.data.scenes.objects import load_objects, objects_root
from prismcap.evaluate.metrics import _vocabulary
from prismcap.evaluate.metrics._terms import Terms
from prismcap.evaluate.metrics._vocabulary import NONE, load_vocabulary, scene_vocabulary

COCO_OBJECTS = 80


def named(terms: Terms, text: str) -> list[str]:
    return [mention.name for mention in terms.mentions(text)]


@pytest.fixture(scope="module")
def coco() -> Terms:
    return load_vocabulary("coco").terms


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("A hot dog, and two dogs beside a teddy bear.", ["hot dog", "dog", "teddy bear"]),
        ("A hot-dog is eaten. Hot. Dogs lie about.", ["hot dog", "dog"]),
        ("MEN and women with children, knives and wine glasses", ["person"] * 3 + ["knife", "wine glass"]),
        ("The dog's bowl; a firemen's truck", ["dog", "bowl", "person", "truck"]),
        ("Two buses at a train station, and no train tracks", ["bus"]),
        ("a baby elephant with a baby", ["elephant", "person"]),
        ("a fire truck, a pickup truck and a truck", ["truck"] * 3),
        ("a carpet, a scarf, a doghouse, gloves", []),
        ("the woman rides a bike; her bikes", ["person", "bicycle", "bicycle"]),
        ("Hot dogs and sheep, geese, mice", ["hot dog", "sheep", "bird", "mouse"]),
        ("", []),
    ],
)
def test_objects_of_a_text(coco: Terms, text: str, objects: list[str]) -> None:
    assert named(coco, text) == objects


def test_mentions_say_where_they_stand(coco: Terms) -> None:
    text = "Some İ: two hot dogs."
    (mention,) = coco.mentions(text)
    assert text[mention.start : mention.end] == "hot dogs"


def test_every_word_of_the_coco_list_names_its_object_and_no_other(coco: Terms) -> None:
    file = Path(_vocabulary.__file__).parent / "_coco_objects.yaml"
    listed = yaml.safe_load(file.read_text())
    assert len(listed) == COCO_OBJECTS + 1 and coco.names == listed.keys() - {NONE}
    for name, phrases in listed.items():
        for phrase in {name, *phrases} - {NONE}:
            found = [] if name == NONE else [name]
            assert named(coco, f"There is a {phrase}, they say.") == found, phrase


def test_a_name_that_is_a_form_of_another_keeps_its_own_meaning() -> None:
    terms = Terms({"glove": [], "gloves": [], "glass": [], "glasses": []})
    assert named(terms, "glove gloves glass glasses") == ["glove", "gloves", "glass", "glasses"]


def test_more_names_can_be_added(coco: Terms) -> None:
    assert coco.extended(["dog", "hot dogs"]) is coco
    more = coco.extended(["dog house", "lamp"])
    assert named(more, "lamps on dog houses") == ["lamp", "dog house"]
    assert named(more, "a train station, a hot dog") == ["hot dog"]


def test_every_word_of_the_scenes_is_in_their_vocabulary() -> None:
    terms = scene_vocabulary().terms
    assert {"tiger", "top hat", "orange", "dragonfly"} <= terms.names
    for name in ("tuxpaint", "openmoji"):
        if not (objects_root() / name / "index.json").is_file():
            pytest.skip("the object sets are not fetched")
        words = load_objects(name).words
        assert set(words) <= terms.names
        assert [named(terms, f"a {word} is here") for word in words] == [[word] for word in words]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_of_ones_own(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    values = {"lamp": ["street light"], "cat": None, NONE: ["cat walk"]}
    path.write_text(json.dumps(values) if suffix == "json" else yaml.safe_dump(values))
    vocabulary = load_vocabulary(str(path))
    assert named(vocabulary.terms, "Street lights, a cat, a cat walk, a dog") == ["lamp", "cat"]
    before = vocabulary.digest
    assert load_vocabulary(str(path)).digest == before
    path.write_text(json.dumps({**values, "cat": ["kitten"]}))
    assert load_vocabulary(str(path)).digest != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- cat", "a mapping of objects"),
        ("{}", "no objects"),
        ("cat: kitten", "key 'cat': a list of synonyms is expected, found 'kitten'"),
        ("cat: [kitten, yes]", "key 'cat': True is no text: put it in quotes"),
        ("cat: [pet]\ndog: [pet]", "'pet' stands below 'cat' and 'dog'"),
        ("cat: ['!']", "'!' of 'cat' holds no word"),
        ("cat: [", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        load_vocabulary(str(path))
    assert str(path) in str(raised.value)
    with pytest.raises(DataError, match=r"nowhere\.yaml"):
        load_vocabulary(str(tmp_path / "nowhere.yaml"))
