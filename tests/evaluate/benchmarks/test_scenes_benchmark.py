"""The scenes benchmark: every answer follows from the scene graph, by rules written anew here."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from string import ascii_uppercase
from typing import Any

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.data.scenes.compose import SceneImage
from prismcap.data.scenes.graph import SceneGraph
from prismcap.data.scenes.splits import pair_held_out, single_held_out
from prismcap.data.scenes.words import manners, word_list
from prismcap.evaluate.benchmarks._contract import Benchmark, Question
from prismcap.evaluate.benchmarks._scene_questions import CATEGORY_OPTIONS
from prismcap.evaluate.benchmarks.scenes import interleaved, shares

pytestmark = pytest.mark.usefixtures("drawings")
Build = Callable[..., Benchmark]
DEMO = {"object_limit": 64, "small_share": 0.25}
NUMBERS = ["zero", "one", "two", "three", "four"]
PLURALS = {"animals": "animal", "things to eat": "food", "plants": "plant"}


@pytest.fixture(params=[DEMO, {"objects": "tuxpaint"}], ids=["demo", "all words"])
def questions(request: pytest.FixtureRequest, build: Build) -> list[Question]:
    benchmark = build("scenes", **request.param)
    return [benchmark[i] for i in range(len(benchmark))]


def graph_of(question: Question) -> SceneGraph:
    (image,) = question.images
    assert isinstance(image, SceneImage)
    return image.graph


def ability(question: Question) -> str:
    return question.categories["category"]


def right_options(question: Question) -> list[bool]:
    """Of each option, whether it is true of the graph."""
    graph, text = graph_of(question), question.text
    objects = graph.objects
    if ability(question) == "recognition":
        return [any(item.word == option for item in objects) for option in question.options]
    if ability(question) == "existence":
        match = re.fullmatch(r"(?:Is|Are) there (?:an?|any) (.+)\?", text)
        assert match is not None
        there = match[1] in [item.word for item in objects]
        return [option == ("Yes" if there else "No") for option in question.options]
    if ability(question) == "category":
        match = re.fullmatch(r"What kind of thing is (?:on|in|at) the (.+)\?", text)
        assert match is not None
        (item,) = [item for item in objects if item.place == match[1]]
        return [option == CATEGORY_OPTIONS[item.category] for option in question.options]
    if ability(question) == "counting":
        match = re.fullmatch(r"How many (.+) are there\?", text)
        assert match is not None
        if match[1] == "objects":
            count = len(objects)
        else:
            assert all(item.category != "unclear" for item in objects)
            count = [item.category for item in objects].count(PLURALS[match[1]])
        return [option == NUMBERS[count] for option in question.options]
    match = re.fullmatch(r"(?:Is|Are) the (.+?) (on the left or on the right|small or large)\?", text)
    assert match is not None
    (item,) = [item for item in objects if item.word == match[1]]
    if ability(question) == "size":
        return [option == item.size for option in question.options]
    return [option == f"on the {item.place.split()[-1]}" for option in question.options]


def test_exactly_the_answer_is_right(questions: list[Question]) -> None:
    for question in questions:
        expected = [letter == question.answer for letter in ascii_uppercase[: len(question.options)]]
        assert right_options(question) == expected, question
        assert len(set(question.options)) == len(question.options)


def test_letters_are_balanced_exactly(questions: list[Question]) -> None:
    by_ability = defaultdict(list)
    for question in questions:
        by_ability[ability(question)].append(question)
    numbers = {name: len(those) for name, those in by_ability.items()}
    assert numbers == {
        "recognition": 160, "category": 88, "left_right": 88, "counting": 88, "existence": 88, "size": 88
    }  # fmt: skip
    for name, those in by_ability.items():
        options = 4 if name in ("recognition", "category", "counting") else 2
        assert {len(question.options) for question in those} == {options}
        letters = Counter(question.answer for question in those)
        assert set(letters.values()) == {len(those) // options} and len(letters) == options


def test_no_answer_is_a_good_guess(questions: list[Question]) -> None:
    """Each option is right in a quarter of the questions that offer it; the last round may be cut short."""
    for name in ("category", "counting"):
        offered, right = Counter[str](), Counter[str]()
        for question in questions:
            if ability(question) == name:
                # the same for each way of asking: how many objects, how many animals
                kind = question.text if name == "counting" else ""
                offered.update(f"{kind} {option}" for option in question.options)
                right[f"{kind} {question.options[ascii_uppercase.index(question.answer)]}"] += 1
        for option, number in offered.items():
            assert abs(right[option] / number - 0.25) <= 0.04, option


def test_what_is_absent_is_not_like_what_is_there(questions: list[Question]) -> None:
    overlap = manners().overlap
    for question in questions:
        graph = graph_of(question)
        if ability(question) == "recognition":
            wrong = [option for option in question.options if option not in graph.words]
            assert len(wrong) == 3
        elif ability(question) == "existence" and question.answer == "B":
            wrong = [re.sub(r"(Is|Are) there (any|an?) |\?", "", question.text)]
        else:
            continue
        assert question.reference is not None
        said = set(re.findall(r"[\w'-]+", question.reference.lower()))
        for word in wrong:
            assert not set(word.split()) & said and word not in question.reference.lower(), question
            assert not any(word in overlap.get(there, ()) for there in graph.words), question


def test_the_reference_says_all_and_no_category(questions: list[Question]) -> None:
    kinds = {"animal", "plant", "vehicle", "building", "instrument", "eat", "wear", "food"}
    for question in questions:
        assert question.reference is not None
        for item in graph_of(question).objects:
            assert f"{item.size} {item.word}" in question.reference
            assert item.place in question.reference
        assert not kinds & set(re.findall(r"\w+", question.reference)), question.reference


def test_scenes_are_held_out_and_shared_once_an_ability(questions: list[Question]) -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    graphs: dict[str, SceneGraph] = {}
    for question in questions:
        graph = graph_of(question)
        assert graphs.setdefault(question.cluster, graph) == graph
        assert ability(question) not in seen[question.cluster]
        seen[question.cluster].add(ability(question))
        words = graph.words
        if len(words) == 1:
            (item,) = graph.objects
            assert single_held_out(item.word, graph.background, item.place, item.size)
        else:
            assert any(pair_held_out(a, b) for a in words for b in words)
    assert len({graph.digest() for graph in graphs.values()}) == len(graphs) >= 160


@pytest.mark.parametrize("number", [12, 30, 60, 600, 1001])
def test_every_prefix_has_all_abilities(number: int) -> None:
    numbers = shares(number)
    order = interleaved(numbers)
    assert len(order) == number and Counter(order) == numbers
    assert set(order[:10]) == set(numbers)
    places = defaultdict(list)
    for position, name in enumerate(order):
        places[name].append(position)
    for name, those in places.items():
        assert all(b - a <= 2 * number / numbers[name] for a, b in pairwise(those)), name


def test_the_seed_decides_all(build: Build) -> None:
    def sums(**options: Any) -> str:
        return build("scenes", **{"num_questions": 24, **DEMO, **options}).checksum

    assert sums(seed=1) == sums(seed=1)
    changes: list[dict[str, Any]] = [{}, {"seed": 5}, {"split": "unseen_stamps"}, {"num_questions": 25}]
    assert len({sums(**change) for change in changes}) == len(changes)


def test_options_are_those_of_a_set_of_words(build: Build) -> None:
    known = set(word_list("tuxpaint").words) | set(word_list("tuxpaint").categories)
    small = build("scenes", num_questions=60, object_limit=16)
    words = {option for i in range(60) if ability(small[i]) == "recognition" for option in small[i].options}
    assert len(words) <= 16 and words <= known


def test_too_much_to_ask_is_an_error(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prismcap.evaluate.benchmarks.scenes._MAX_SCENES", 0)
    with pytest.raises(ConfigError, match="no scene is left for question 0 of recognition"):
        build("scenes", num_questions=12)
