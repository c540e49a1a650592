"""Tokens are those of Stanford's PTBTokenizer, as pycocoevalcap runs it."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycoco_reference import GOLDEN, missing, tokenized

from prismcap.evaluate.metrics._ptb import tokenize

GOLD = json.loads(GOLDEN.read_text())
REMOVED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


def golden_texts() -> dict[str, str]:
    """Text -> the tokens that it has there."""
    found = {line["text"]: line["tokens"] for line in GOLD["lines"]}
    for item in GOLD["items"]:
        found[item["text"]] = item["tokens"]["text"]
        found |= dict(zip(item["references"], item["tokens"]["references"], strict=True))
    return found


def differences(expected: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {text: (tokens, tokenize(text)) for text, tokens in expected.items() if tokenize(text) != tokens}


def test_tokens_are_those_of_the_reference() -> None:
    texts = golden_texts()
    assert len(texts) > 100
    assert differences(texts) == {}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog, a cat; and a man.", "a dog a cat and a man"),
        ("It's the dogs' toy, isn't it?", "it 's the dogs toy is n't it"),
        ("You cannot - gonna", "you can not gon na"),
        ("(left) [right]", "-lrb- left -rrb- -lsb- right -rsb-"),
        ("at 5 p.m. in the U.S.", "at 5 p.m. in the u.s."),
        ("a red-and-white T-shirt", "a red-and-white t-shirt"),
        ("costs $5, 50%", "costs $ 5 50 %"),
        ("Mr. Smith sat.", "mr. smith sat"),
        ("1 1/2 cups", "1\xa01/2 cups"),
        ("see no. 5, but no. Never", "see no. 5 but no never"),
        ("plan b. The end of plan b. there", "plan b the end of plan b. there"),
        ("👍 nice", "nice"),
        ("'tiſ a dog", "'t iſ a dog"),
        ("a \xad\xad dog", "a dog"),
        ("…", ""),
        ("", ""),
    ],
)
def test_tokens_by_hand(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="aA1.,'-\"()/&<>@:;=! ’“\xa0", max_size=40))
def test_whatever_the_text_tokens_are_lower_case_words_without_punctuation(text: str) -> None:
    tokens = tokenize(text)
    assert tokens == tokens.lower()
    assert tokens == "" or all(token and token not in REMOVED for token in tokens.split(" "))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["dog", "Red", "tree", "ON", "beach"]), max_size=8))
def test_plain_words_stay_as_they_are(words: list[str]) -> None:
    assert tokenize(" ".join(words)) == " ".join(words).lower()


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\u2028", "\x0b", "\x85"])
def test_a_line_break_is_a_space(line_break: str) -> None:
    assert tokenize(f"a dog{line_break}{line_break}on grass{line_break}") == "a dog on grass"


def test_where_a_caption_is_read_among_others_makes_no_difference() -> None:
    alone = tokenize("we meet at no.")
    assert [tokenize(text) for text in ("5 dogs", "we meet at no.", "5 dogs")][1] == alone == "we meet at no"


@pytest.mark.slow
def test_tokens_are_those_of_pycocoevalcap_on_texts_put_together_by_chance() -> None:
    if missing():
        pytest.skip(missing())
    draw = random.Random(0)
    pieces = sorted({piece for text in golden_texts() for piece in text.split(" ") if piece})
    joints = [" ", " ", " ", "", ", ", ". ", "'s ", '" ', " (", ") ", "...", "/", "-", "’s ", ": "]
    texts = [
        "".join(draw.choice(pieces) + draw.choice(joints) for _ in range(draw.randint(1, 8))).strip()
        for _ in range(4000)
    ]
    assert differences(dict(zip(texts, tokenized(texts), strict=True))) == {}
