"""The rules: keyword answers what the description names, random draws one of the options."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.reasoners._rules import CANNOT_TELL
from prismcap.evaluate.reasoners.keyword import number_forms, read
from prismcap.evaluate.reasoners.random import guess


def choice(*options: str, **more: Any) -> Question:
    return Question(id="1", kind="choice", text="Which?", answer="A", images=(), options=options, **more)


def yes_no(text: str) -> Question:
    return Question(id="1", kind="yes_no", text=text, answer="yes", images=())


@pytest.mark.parametrize(
    ("options", "description", "reply"),
    [
        (["a tiger", "a hammer", "a cake"], "A hammer on the left.", "B"),
        (["a tiger", "a hammer"], "a TIGER.", "A"),
        (["a tiger", "a hammer"], "A tiger and a hammer.", None),
        (["a tiger", "a hammer"], "A house.", None),
        (["a tiger", "a hammer"], "", None),
        (["a tiger", "a hammer"], None, None),
        (["car", "cat"], "A cartoon scarf.", None),
        (["an ant", "a hat"], "Elephants want that.", None),
        (["tiger", "lion"], "Two tigers.", "A"),
        (["two tigers", "a lion"], "There is a tiger.", None),
        (["tigers", "lions"], "A lion.", "B"),
        (["a berry", "a bus"], "Berries.", "A"),
        (["a berry", "a bus"], "Buses.", "B"),
        (["dog", "dogs"], "Some dogs.", "B"),
        (["dog", "dogs"], "A dog.", "A"),
        (["a glass", "a plate"], "A man with glasses.", None),
        (["new", "old"], "The news.", None),
        (["a ball", "a tennis ball"], "A tennis ball on grass.", "B"),
        (["a ball", "a tennis ball"], "A ball on grass.", "A"),
        (["a ball", "a tennis ball"], "A tennis ball and a red ball.", None),
        (["fire engine", "police car"], "A fire beside an engine, and a police car.", "B"),
        (["fire engine", "police car"], "An engine on fire.", None),
        (["a T-shirt", "a skirt"], "a red t-shirt", "A"),
        (["1", "2"], "There are 2 of 12 boats.", "B"),
        (["", "?!", "a cat"], "A cat.", "C"),
        (["dog", "dog", "cat"], "A dog.", None),
        (["Straße", "Haus"], "STRASSE", "A"),
    ],
)
def test_the_one_named_option_is_chosen(
    options: list[str], description: str | None, reply: str | None
) -> None:
    assert read(choice(*options), description) == (reply or CANNOT_TELL)


@pytest.mark.parametrize(
    ("text", "description", "reply"),
    [
        ("Is there a hammer?", "A hammer on the left.", "Yes."),
        ("Is there a hammer?", "A tiger on the left.", "No."),
        ("Is there a hammer?", None, CANNOT_TELL),
        ("Are there any grapes?", "Some grapes at the top.", "Yes."),
        ("Is there an umbrella in the image?", "People with umbrellas.", "Yes."),
        ("Is there a fire hydrant in the image?\nAnswer yes or no.", "A hydrant.", "No."),
        ("Is the cat on the left?", "A cat on the left.", CANNOT_TELL),
    ],
)
def test_yes_or_no_as_the_description_names_it(text: str, description: str | None, reply: str) -> None:
    assert read(yes_no(text), description) == reply


def test_number_forms_are_mutual() -> None:
    for one, many in (("tiger", "tigers"), ("box", "boxes"), ("cherry", "cherries"), ("key", "keys")):
        assert many in number_forms(one) and one in number_forms(many)
    assert number_forms("glasses") == {"glasses"} and "glasses" not in number_forms("glass")


def test_free_answers_are_refused() -> None:
    free = Question(id="1", kind="number", text="How many?", answer="3", images=())
    assert read(free, "3 cats") == guess(free, 0) == CANNOT_TELL


def test_guesses_are_even_and_follow_seed_and_question_alone() -> None:
    questions = [
        Question(id=str(i), kind="choice", text="Which?", answer="A", images=(), options=("x", "y", "z"))
        for i in range(3000)
    ]
    guesses = [guess(question, 7) for question in questions]
    assert guesses == [guess(question, 7) for question in questions]
    counts = Counter(guesses)
    assert set(counts) == {"A", "B", "C"}
    # 5 standard deviations of a third of 3000
    assert all(abs(count - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for count in counts.values())
    other = [guess(question, 8) for question in questions]
    agree = sum(a == b for a, b in zip(guesses, other, strict=True))
    assert abs(agree - 1000) < 5 * (3000 * 2 / 9) ** 0.5, "another seed is another guess"
    assert {guess(yes_no(f"{i}?"), 7) for i in range(2)} <= {"Yes.", "No."}
