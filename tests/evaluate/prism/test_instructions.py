"""The paper's texts, the prompts, and the cleaning of what a reasoner wrote."""

from __future__ import annotations

import pytest

from prismcap.configs.schema.prism import InstructionConfig
from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.prism.instructions import (
    FEW_SHOT,
    INSTRUCTIONS,
    WRITER_TASK,
    generic_text,
    specific_text,
    writer_prompt,
)
from prismcap.evaluate.prism.prompts import end_to_end_prompt, question_text, reasoning_prompt
from prismcap.evaluate.prism.written_parts import clean_part

HUMAN1 = (
    "Describe the fine-grained content of the image, including scenes, objects, relationships, instance "
    "location, and any text present."
)
CHOICE = Question(
    id="1",
    kind="choice",
    text="What is left of the tiger?",
    answer="A",
    images=(),
    options=("hammer", "red boat", "3", "a"),
    hint="Look twice.",
)
FREE = Question(id="2", kind="text", text="What is written on the sign?", answer="stop", images=())


def test_the_six_texts_are_the_papers() -> None:
    assert {
        "human1": HUMAN1,
        "human2": HUMAN1.replace("instance location", "instance location, background")
        + " Please skip generating statements for non-existent contents and describe all you see. ",
        "gpt1": "Given the image below, please provide a detailed description of what you see.",
        "gpt2": "Analyze the image below and describe the main elements and their relationship.",
        "cot": HUMAN1 + " Let's think step by step.",
        "decompose": (
            "Decompose the image into several parts and describe the fine-grained content of the image part "
            "by part, including scenes, objects, relationships, instance location, and any text present."
        ),
    } == INSTRUCTIONS
    assert generic_text(InstructionConfig()) == HUMAN1
    assert generic_text(InstructionConfig(text="Say what you see.")) == "Say what you see."


def test_a_part_is_joined_as_a_sentence() -> None:
    config = InstructionConfig(written_by="llm")
    wanted = f"{HUMAN1} Especially, pay attention to the signs."
    assert specific_text(config, "the signs") == wanted
    assert specific_text(config, "the signs.") == wanted
    assert specific_text(config, None) == HUMAN1
    human2 = InstructionConfig(key="human2", written_by="llm")
    assert "  " not in specific_text(human2, "the signs")


def test_the_writer_sees_options_only_when_it_may() -> None:
    hidden, shown = writer_prompt(CHOICE, False), writer_prompt(CHOICE, True)
    assert hidden.startswith(WRITER_TASK) and shown.startswith(WRITER_TASK)
    assert not any(option in hidden for option in ("hammer", "red boat"))
    assert "A. hammer\nB. red boat\n" in shown
    for prompt in (hidden, shown):
        assert prompt.endswith("\nContents to observe: ")
        assert prompt.count("Question: ") == prompt.count("Contents to observe:") == len(FEW_SHOT) + 1 == 6


def test_a_choice_is_asked_as_the_field_asks_it() -> None:
    assert question_text(CHOICE) == (
        "What is left of the tiger?\nHint: Look twice.\nOptions:\nA. hammer\nB. red boat\nC. 3\nD. a\n"
        "Please select the correct answer from the options above. \n"
    )
    assert question_text(FREE) == "What is written on the sign?"
    assert end_to_end_prompt(CHOICE) == question_text(CHOICE)


def test_the_reasoning_prompt() -> None:
    task = "You are an excellent text-based reasoning expert. You are required to answer the question"
    assert reasoning_prompt(FREE, "A stop sign.") == (
        f"{task} based on the detailed description of the image.\n\n"
        "Description: A stop sign.\nQuestion: What is written on the sign?\n"
    )
    assert reasoning_prompt(FREE, None) == f"{task}.\n\nQuestion: What is written on the sign?\n"


@pytest.mark.parametrize("start", ["Question: ", "question:", "Hint: Give a number.\nQuestion: "])
def test_a_labelled_question_is_not_labelled_again(start: str) -> None:
    labelled = Question(id="3", kind="number", text=f"{start}how many?", answer="2", images=())
    assert f"\nDescription: D\n{start}how many?\n" in reasoning_prompt(labelled, "D")


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        ("the objects beside the tiger", "the objects beside the tiger"),
        ('"The objects beside the tiger."', "the objects beside the tiger"),
        ("“the tiger’s place”.", "the tiger’s place"),
        ("Contents to observe: the tiger's place", "the tiger's place"),
        ("Sure! Here is the instruction: The location of the tiger.", "the location of the tiger"),
        ("**the tiger**", "the tiger"),
        ("the tiger\n\nQuestion: What else?\nContents to observe: the sky", "the tiger"),
        ("- the tiger\n- its neighbours\n", "the tiger, its neighbours"),
        ("<think>The user is asking</think>\nthe tiger", "the tiger"),
        ("Please describe the animals in detail.", "the animals in detail"),
        ("Describe in detail the animals.", "the animals"),
        ("You should focus on the people who are near. Then answer.", "the people who are near"),
        ("Pay attention to the position of the tiger.", "the position of the tiger"),
        ("The basic elements that need to be described are the tiger and the sky.", "the tiger and the sky"),
        ("whether the tiger is awake", "whether the tiger is awake"),
        ("NASA logos and text", "NASA logos and text"),
    ],
)
def test_a_written_part_becomes_a_noun_phrase(reply: str, part: str) -> None:
    cleaned = clean_part(reply, CHOICE, options_shown=False)
    assert cleaned.text == part, cleaned.fallback
    assert cleaned.fallback is None


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("What is the tiger doing?", "a question"),
        ("The tiger is left of the house.", "a sentence"),
        ("I'm sorry, I cannot see the image.", "a sentence"),
        ("There are two tigers", "a sentence"),
        ("the thing that says what is left of the tiger", "repeats the question"),
        ("word " * 61, "more than 60 words"),
    ],
)
def test_what_is_no_noun_phrase_is_rejected(reply: str, why: str) -> None:
    cleaned = clean_part(reply, CHOICE, options_shown=True)
    assert cleaned.text is None
    assert why in str(cleaned.fallback)


@pytest.mark.parametrize("example", [text for pair in FEW_SHOT for text in pair])
@pytest.mark.parametrize("form", ["{}", '"{}."', "Describe {}", "{}, and the tiger"])
def test_echoes_of_the_examples_are_rejected(example: str, form: str) -> None:
    assert clean_part(form.format(example.rstrip("?")), FREE, options_shown=True).text is None


def test_options_that_were_hidden_are_not_given_away() -> None:
    for leak in ("the hammer beside it", "the Red Boat's place", "the 3 animals"):
        assert "gives an option away" in str(clean_part(leak, CHOICE, options_shown=False).fallback)
        assert clean_part(leak, CHOICE, options_shown=True).text is not None
    # part of another word, an article, or named by the question itself
    assert clean_part("the hammerhead beside a tree", CHOICE, options_shown=False).text is not None
    named = Question("4", "choice", "Is it a hammer or a boat?", "A", (), options=("hammer", "boat"))
    assert clean_part("the hammer or boat", named, options_shown=False).text is not None
