from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismcap.evaluate.scoring.choice import extract_choice
from prismcap.evaluate.scoring.yes_no import extract_yes_no

WORDS = ["red apple", "apple", "green pear", "the old bridge", "12 cm", "1.2 cm", "a dog", "New York", "3/4"]
TEXT_FORMS = [
    "{}",
    "The answer is {}.",
    "It is {}.",
    "**{}**",
    "\\boxed{{{}}}",
    "So it must be {}.",
    "Clearly {} is shown in the picture.",
    "<think>Perhaps A? The answer is B.</think>{}",
    "Die Antwort ist {}.",
    "答案：{}",
]
LETTER_FORMS = [
    "{}",
    "({})",
    "{}.",
    "The answer is {}.",
    "Answer: {}",
    "**{}**",
    "\\boxed{{{}}}",
    "option {}",
    "I would choose {}.",
    "Therefore, the correct answer is ({}).",
    "<think>no idea</think>\n{}",
    "La respuesta es {}.",
    "答案是{}",
]
options = st.lists(st.sampled_from(WORDS), min_size=2, max_size=6, unique=True)


@settings(deadline=None)
@given(options, st.data(), st.sampled_from(TEXT_FORMS))
def test_shuffling_the_options_moves_the_letter_of_a_text(
    texts: list[str], data: st.DataObject, form: str
) -> None:
    chosen = data.draw(st.sampled_from(texts))
    shuffled = data.draw(st.permutations(texts))
    for order in (texts, shuffled):
        found = extract_choice(form.format(chosen), order)
        assert found.value is not None, (form, chosen, order)
        assert order[ord(found.value) - ord("A")] == chosen


@settings(deadline=None)
@given(st.integers(2, 26), st.data(), st.sampled_from(LETTER_FORMS))
def test_a_marked_letter_counts_in_either_case(count: int, data: st.DataObject, form: str) -> None:
    letter = chr(ord("A") + data.draw(st.integers(0, count - 1)))
    texts = [f"thing number {position} of them" for position in range(count)]
    assert extract_choice(form.format(letter), texts).value == letter
    assert extract_choice(form.format(letter.lower()), texts).value == letter


PIECES = [
    "A",
    "(B)",
    "C.",
    "E",
    "Z",
    "The answer is",
    "Answer:",
    "not",
    "so",
    "because",
    "or",
    "and",
    "yes",
    "no",
]
MARKS = [
    "\n",
    "\\boxed{",
    "}",
    "<think>",
    "</think>",
    "**",
    "?",
    "答案",
    "Actually,",
    "I cannot tell.",
    "red apple",
]
FRAGMENTS = st.one_of(st.sampled_from(PIECES), st.sampled_from(MARKS), st.text(max_size=8))


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=14).map(" ".join), st.integers(1, 4))
def test_never_a_letter_beyond_the_options(reply: str, count: int) -> None:
    texts = ["red apple", "apple", "green pear", "banana"][:count]
    found = extract_choice(reply, texts)
    assert found.value is None or found.value in "ABCD"[:count]
    assert extract_choice(reply, texts) == found
    assert (found.value is None) == (found.how == "unmatched")
    assert extract_yes_no(reply).value in (None, "yes", "no")


@settings(deadline=None)
@given(st.lists(FRAGMENTS, max_size=8).map(" ".join))
def test_what_is_thought_is_never_read(thought: str) -> None:
    thought = thought.replace("<think>", "").replace("</think>", "")
    texts = ["red apple", "apple", "green pear", "banana"]
    assert extract_choice(f"<think>{thought}</think>The answer is C.", texts).value == "C"
    assert extract_choice(f"<think>{thought}", texts).value is None


@pytest.mark.parametrize("count", [0, 27])
def test_a_number_of_options_without_letters_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} options"):
        extract_choice("A", ["x"] * count)


def test_a_long_reply_takes_no_long_time() -> None:
    """Not quadratic in the reply: a model that repeats itself to the token limit."""
    reply = "Let me look at option A and option B again, the red apple is not the apple. " * 400
    assert extract_choice(reply + "The answer is C.", ["red apple", "apple", "green pear"]).value == "C"
