"""data.max_text_tokens: MiniGPT-4's max_txt_len, with every other cut as it was."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.schema.base import Component
from prismcap.data.encode import Encoder, build_encoder
from prismcap.data.schema import (
    IGNORE_INDEX,
    Encoded,
    ImagePart,
    Message,
    Sample,
    SampleRejected,
    TextPart,
    TokenSpec,
)

IMAGE_TOKENS = 40  # more than the bounds on text that are tried here
WORDS = [f"w{i}" for i in range(10)]
PROMPT = "Describe this."


@dataclass(frozen=True)
class Picture:
    name: str = "x"

    def load(self) -> Image.Image:
        raise AssertionError("opened")

    def fingerprint(self) -> str:
        raise AssertionError("opened")


@cache
def words() -> PreTrainedTokenizerFast:
    """One token a word; `###` at the end of a word stays a part of it, as some LLaMA tokens do."""
    ends = [f"{word}###" for word in WORDS]
    other = ["<unk>", "</s>", "\n", *PROMPT.split(), "USER:", "ASSISTANT:", "###Human:", "<Img>", "</Img>"]
    vocabulary = {word: i for i, word in enumerate([*other, "###Assistant:", *WORDS, *ends])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def coder(template: str, max_text_tokens: int | None, max_tokens: int = 500) -> Encoder:
    component = Component(name=template, system=None) if template == "vicuna_v1" else Component(name=template)
    spec = TokenSpec(IMAGE_TOKENS)
    return build_encoder(component, words(), spec, max_tokens, max_text_tokens=max_text_tokens)


def captioned(caption: str) -> Sample:
    messages = (
        Message("user", (ImagePart(0), TextPart(PROMPT))),
        Message("assistant", (TextPart(caption),), train=True),
    )
    return Sample("id", (Picture(),), messages, "captions")


def caption_of(num_words: int) -> str:
    return " ".join(WORDS[i % 10] for i in range(num_words))


def trained(encoded: Encoded) -> list[int]:
    return encoded.labels[encoded.labels != IGNORE_INDEX].tolist()


def minigpt4_targets(caption: str, end: str, max_txt_len: int) -> list[int]:
    """What MiniGPT-4 regresses (preparing_embedding): caption and end mark as one text, truncated."""
    ids: list[int] = words()(caption + end, add_special_tokens=False)["input_ids"]
    return ids[:max_txt_len]


@settings(max_examples=60, deadline=None)
@given(num_words=st.integers(1, 60), limit=st.integers(1, 40))
def test_a_caption_is_cut_as_minigpt4_cuts_it(num_words: int, limit: int) -> None:
    caption = caption_of(num_words)
    encoded = coder("minigpt4", limit).encode(captioned(caption))
    assert trained(encoded) == minigpt4_targets(caption, "###", limit)
    assert encoded.cut_tokens == max(0, num_words - limit)
    # the prompt and the picture are whole, and are not counted
    assert encoded.spans[0][2] == IMAGE_TOKENS
    whole = coder("minigpt4", None).encode(captioned(caption))
    assert encoded.input_ids.tolist() == whole.input_ids.tolist()[: len(encoded)]


@pytest.mark.parametrize(("num_words", "has_end"), [(31, True), (32, False), (33, False)])
def test_an_end_mark_is_trained_where_the_caption_ends_by_itself(num_words: int, has_end: bool) -> None:
    """Stage 1: a caption of 31 tokens and its newline are 32; a longer one is cut, and has no newline."""
    encoded = coder("plain", 32).encode(captioned(caption_of(num_words)))
    targets = trained(encoded)
    assert (targets[-1] == words().convert_tokens_to_ids("\n")) == has_end
    assert len(targets) == 32 and encoded.cut_tokens == num_words + 1 - 32
    assert len(encoded) == IMAGE_TOKENS + 32


def talk(*lengths: int, second_picture: bool = False) -> Sample:
    messages: list[Message] = []
    for i, length in enumerate(lengths):
        pictures = [ImagePart(0)] if i == 0 else [ImagePart(1)] if i == 1 and second_picture else []
        messages.append(Message("user", (*pictures, TextPart("w1 w2"))))
        messages.append(Message("assistant", (TextPart(caption_of(length)),), train=True))
    return Sample("id", (Picture("a"), Picture("b")), tuple(messages), "talk")


def text_after_first(encoded: Encoded) -> int:
    """Text tokens from the first answer on."""
    first = next(i for i, label in enumerate(encoded.labels.tolist()) if label != IGNORE_INDEX)
    pictures = sum(length for _, start, length in encoded.spans if start >= first)
    return len(encoded) - first - pictures


def test_whole_turns_go_as_for_max_tokens() -> None:
    sample = talk(5, 6, 7)
    whole = coder("vicuna_v1", None).encode(sample)
    size = text_after_first(whole)
    for limit in range(1, size + 3):
        encoded = coder("vicuna_v1", limit).encode(sample)
        # the same place as a bound on the whole sample that leaves as much room
        same = coder("vicuna_v1", None, len(whole) - size + limit).encode(sample)
        assert encoded.input_ids.tolist() == same.input_ids.tolist(), limit
        assert encoded.labels.tolist() == same.labels.tolist(), limit
        assert text_after_first(encoded) <= limit
        assert encoded.cut_tokens == len(whole) - len(encoded)


def test_a_picture_between_turns_costs_no_text() -> None:
    without, with_picture = talk(5, 6, 7), talk(5, 6, 7, second_picture=True)
    size = text_after_first(coder("vicuna_v1", None).encode(without))
    for limit in range(1, size + 2):
        plain = coder("vicuna_v1", limit).encode(without)
        shown = coder("vicuna_v1", limit).encode(with_picture)
        assert trained(shown) == trained(plain), limit
        assert len(shown) - len(plain) in (0, IMAGE_TOKENS)
        assert all(length == IMAGE_TOKENS for _, _, length in shown.spans), "no picture is cut"


def test_both_bounds_hold_and_the_tighter_one_cuts() -> None:
    sample = captioned(caption_of(50))
    prompt = len(coder("minigpt4", 1).encode(sample)) - 1
    for max_tokens, limit in ((prompt + 20, 30), (prompt + 30, 20)):
        encoded = coder("minigpt4", limit, max_tokens).encode(sample)
        assert len(trained(encoded)) == 20
    with pytest.raises(SampleRejected, match=rf"its prompt takes {prompt} tokens, max_tokens is {prompt}"):
        coder("minigpt4", 30, prompt).encode(sample)
    short = coder("minigpt4", 1).encode(sample)
    assert len(trained(short)) == 1, "a prompt is not what max_text_tokens bounds"
