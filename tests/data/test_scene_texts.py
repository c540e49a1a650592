"""The texts of a scene say exactly what is there, and are read back as exactly that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from prismcap.configs.cache import cache_dir
from prismcap.data.scenes.graph import LAYOUTS, Background, SceneGraph, SceneObject
from prismcap.data.scenes.objects import load_objects
from prismcap.data.scenes.text import (
    CATEGORY_PLURALS,
    KINDS,
    NUMBERS,
    answer_right,
    ask_again,
    count_question,
    long_caption,
    normalise_answer,
    parse_short_caption,
    place_question,
    short_caption,
    yes_no_question,
)
from prismcap.data.scenes.words import (
    told_apart,
)
from prismcap.data.sources import scenes
from prismcap.data.sources._contract import SourceContext

ALL_COUNTS = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
ALL_TASKS = {kind: 1 for kind in KINDS}


def source(seed: int = 0, **options: object) -> scenes.SceneItems:
    values = {"num_objects": ALL_COUNTS, "num_scenes": 300, "tasks": ALL_TASKS, **options}
    return scenes.build(scenes.Options.model_validate(values), SourceContext(seed=seed))


def thing(word: str, place: str, category: str = "animal", size: str = "large") -> SceneObject:
    return SceneObject(word, f"tuxpaint:{word}", category, place, size, (0, 0, 10, 10))  # type: ignore[arg-type]


HAND_MADE = SceneGraph(
    192,
    Background("blue", "striped"),
    (thing("tiger", "left"), thing("apple", "middle", "food", "small"), thing("grapes", "right", "food")),
)


def test_texts_of_a_hand_made_scene() -> None:
    assert (
        short_caption(HAND_MADE)
        == "A tiger on the left, an apple in the middle and some grapes on the right."
    )
    assert long_caption(HAND_MADE) == (
        "There are three objects on a striped blue background. On the left is a large tiger. "
        "In the middle is a small apple. On the right are some large grapes."
    )
    assert place_question(HAND_MADE, "middle").prompt == "What is in the middle?"
    assert place_question(HAND_MADE, "middle").answer == "An apple."
    assert count_question(HAND_MADE, "food").prompt == "How many things to eat are there?"
    assert count_question(HAND_MADE, "food").answer == "Two."
    assert count_question(HAND_MADE, "vehicle").answer == "Zero."
    assert count_question(HAND_MADE, None).answer == "Three."
    assert yes_no_question(HAND_MADE, "hammer").prompt == "Is there a hammer?"
    assert yes_no_question(HAND_MADE, "hammer").answer == "No."
    assert yes_no_question(HAND_MADE, "grapes").prompt == "Are there any grapes?"
    assert yes_no_question(HAND_MADE, "grapes").answer == "Yes."
    with pytest.raises(KeyError):
        place_question(HAND_MADE, "top")


@pytest.mark.parametrize("objects", ["tuxpaint", "openmoji", "both"])
def test_short_captions_are_read_back(objects: str) -> None:
    found = source(objects=objects, tasks={"short": 1}, num_scenes=600)
    for i in range(len(found)):
        item = found.item(i)
        assert parse_short_caption(item.answer) == item.graph.pairs()
        assert parse_short_caption(f"  {item.answer.upper().rstrip('.')}\n") == item.graph.pairs()


@pytest.mark.parametrize("objects", ["tuxpaint", "openmoji"])
def test_every_word_is_read_back_at_every_place(objects: str) -> None:
    for word in load_objects(objects).words:
        for places in (places for layouts in LAYOUTS.values() for places in layouts):
            others = ("tiger", "hammer", "grapes")
            words = (word, *(other for other in others if other != word))[: len(places)]
            graph = replace(HAND_MADE, objects=tuple(map(thing, words, places)))
            assert parse_short_caption(short_caption(graph)) == graph.pairs()


@pytest.mark.parametrize(
    "wrong",
    [
        "A tiger on the left and a hammer on the left.",
        "A tiger on the right and a hammer on the left.",
        "A tiger on the left.",
        "A tiger on the left and a hammer on the right and a key at the top.",
        "A tiger on the left and a hammer on the right. It is raining.",
        "A tiger on the left, a tiger on the left and a hammer on the right.",
        "A big tiger on the left and a hammer on the right.",
        "A tiger and a hammer.",
        "",
    ],
)
def test_wrong_captions_are_not_all_right(wrong: str) -> None:
    graph = replace(HAND_MADE, objects=(thing("tiger", "left"), thing("hammer", "right")))
    assert parse_short_caption("A tiger on the left and a hammer on the right.") == graph.pairs()
    assert parse_short_caption(wrong) != graph.pairs()


def test_half_right_captions_count_by_object() -> None:
    said = parse_short_caption("A tiger on the left and a spanner on the right. The end.")
    assert said == {("tiger", "left"), ("spanner", "right"), ("the end", "")}


def test_answers_are_normalised() -> None:
    assert normalise_answer(" A  Tiger. ") == "tiger"
    assert normalise_answer("2") == normalise_answer("Two.") == "two"
    assert normalise_answer("²") == "²" and normalise_answer("7") == "7"
    assert (
        answer_right("none", "Zero.")
        and answer_right("yes", "Yes.")
        and answer_right("some grapes", "Grapes")
    )
    assert not answer_right("Yes", "No.") and not answer_right("a red tiger", "A tiger.")
    assert not answer_right("", "Zero.")


def test_a_question_is_asked_again_of_another_scene() -> None:
    other = replace(HAND_MADE, objects=(thing("dog", "left"), thing("cat", "right")))
    assert ask_again(place_question(HAND_MADE, "left").prompt, other) == "A dog."
    assert ask_again(place_question(HAND_MADE, "middle").prompt, other) == ""
    assert ask_again(count_question(HAND_MADE, "animal").prompt, other) == "Two."
    assert ask_again(count_question(HAND_MADE, "food").prompt, other) == "Zero."
    assert ask_again(count_question(HAND_MADE, None).prompt, other) == "Two."
    with pytest.raises(KeyError):
        ask_again(yes_no_question(HAND_MADE, "tiger").prompt, other)


def test_questions_agree_with_the_graph() -> None:
    found = source(num_scenes=600, tasks={"place": 1, "count": 2, "yes_no": 2})
    counted: Counter[str] = Counter()
    for i in range(len(found)):
        item = found.item(i)
        words = [o.word for o in item.graph.objects]
        asked = item.text.asked
        if item.kind == "place":
            (word,) = [o.word for o in item.graph.objects if o.place == asked]
            assert answer_right(item.answer, word)
        elif item.kind == "yes_no":
            assert asked in item.text.prompt
            assert item.answer == ("Yes." if asked in words else "No.")
            assert asked in words or told_apart(asked, tuple(words))
        elif asked == "object":
            assert item.answer == f"{NUMBERS[len(words)].capitalize()}."
        else:
            categories = [o.category for o in item.graph.objects]
            assert CATEGORY_PLURALS[asked] in item.text.prompt and "unclear" not in categories
            assert item.answer == f"{NUMBERS[categories.count(asked)].capitalize()}."
            counted[item.answer] += 1
    assert {"Zero.", "One.", "Two."} <= counted.keys()


@pytest.mark.parametrize("split", ["train", "unseen_pairs", "unseen_stamps"])
def test_yes_and_no_are_balanced(split: str) -> None:
    found = source(split=split, tasks={"yes_no": 1}, num_scenes=200)
    answers = Counter(found.item(i).answer for i in range(len(found)))
    assert answers == {"Yes.": 100, "No.": 100}


def test_captions_are_short_in_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(cache_dir() / "models" / "smollm2-135m-instruct" / "tokenizer.json"))
    found = source(num_objects={2: 1}, tasks={"short": 1}, num_scenes=500)
    lengths = [len(tokenizer.encode(found.item(i).answer).ids) for i in range(len(found))]
    assert np.mean(lengths) < 18 and max(lengths) <= 25
