"""mPLUG-Owl's rows: this source and the template `owl` make the ids and the mask that its own code makes."""

from __future__ import annotations

import json
import pickle
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.schema.base import Component
from prismcap.data.encode import Encoder, build_encoder
from prismcap.data.schema import IGNORE_INDEX, DataError, ImagePart, SampleRejected, TextPart, TokenSpec
from prismcap.data.sources import owl_json
from prismcap.data.sources._contract import SourceContext
from prismcap.data.templates.owl import SYSTEM

IMAGE_TOKENS = 65
WORDS = ["a", "b", "cat", "sits", "OpenAI:", "why?", "list:"]
# the two examples of its README, shortened
TEXT_ONLY = f"{SYSTEM}\nHuman: Construct a sentence\nshudder\nAI: She shuddered."
WITH_IMAGE = (
    f"{SYSTEM}\nHuman: <image>\nHuman: Where is the man?\nAI: In a restaurant."
    "\nHuman: What is it?\nAI: A burrito."
)


def source(path: Path, **options: Any) -> owl_json.OwlJson:
    return owl_json.build(owl_json.Options(path=str(path), **options), SourceContext())


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_the_readme(tmp_path: Path) -> None:
    rows = [
        {"text": TEXT_ONLY, "task_type": "gpt4instruct_sft"},
        {"image": ["xxx.jpg"], "text": WITH_IMAGE, "task_type": "llava_sft"},
    ]
    data = source(write(tmp_path, *rows))
    text, shown = data[0], data[1]
    assert text.images == () and [message.role for message in text.messages] == [
        "system",
        "user",
        "assistant",
    ]
    assert [message.text() for message in text.messages] == [
        SYSTEM,
        "Construct a sentence\nshudder",
        "She shuddered.",
    ]
    assert [str(image) for image in shown.images] == [str(tmp_path / "xxx.jpg")]
    assert shown.messages[1].parts == (ImagePart(0), TextPart("Where is the man?"))
    assert [message.train for message in shown.messages] == [False, False, True, False, True]
    assert shown.messages[4].text() == "A burrito."
    assert pickle.loads(pickle.dumps(data))[1] == shown  # noqa: S301  # as a loader worker gets it
    assert len(source(tmp_path / "train.jsonl", limit=1)) == 1
    assert source(tmp_path / "train.jsonl", limit=1).fingerprint() != data.fingerprint()


@cache
def coder() -> Encoder:
    words = ["<unk>", "</s>", "Human:", "AI:", *WORDS, *SYSTEM.split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    return build_encoder(Component(name="owl"), fast, TokenSpec(IMAGE_TOKENS), 4096)


def original(text: str) -> list[tuple[int | str, bool]]:
    """(id or `picture`, trained) from the text, as _extract_text_token_from_conversation of mPLUG-Owl's
    pipeline/data_utils/xgpt3_dataset.py reads it; `AI: ` alone counts at the beginning of a line only."""
    tokenizer = coder().tokenizer
    chunks = [chunk for chunk in re.split(r"(<image>|(?<![^\n])AI: |\nHuman: )", text) if chunk]
    found: list[tuple[int | str, bool]] = []
    for before, chunk in zip(["", *chunks], chunks, strict=False):
        if chunk == "<image>":
            found += [("picture", False)] * IMAGE_TOKENS
        else:
            trained = before == "AI: "
            ids = tokenizer(chunk, add_special_tokens=False)["input_ids"]
            found += [(id, trained) for id in ids]
            found += [(tokenizer.eos_token_id, True)] if trained else []
    return found


def ours(folder: Path, row: dict[str, Any]) -> list[tuple[int | str, bool]]:
    encoded = coder().encode(source(write(folder, row))[0])
    pictures = {start + i for _, start, length in encoded.spans for i in range(length)}
    pairs = zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True)
    return [
        ("picture" if place in pictures else id, label != IGNORE_INDEX)
        for place, (id, label) in enumerate(pairs)
    ]


phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
exchanges = st.lists(st.tuples(phrases, phrases), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(talk=exchanges, num_images=st.integers(0, 3))
def test_ids_and_mask_are_those_of_the_original(
    tmp_path_factory: pytest.TempPathFactory, talk: list[tuple[str, str]], num_images: int
) -> None:
    turns = "".join(f"\nHuman: {question}\nAI: {answer}" for question, answer in talk)
    text = SYSTEM + "\nHuman: <image>" * num_images + turns
    row = {"image": [f"{i}.jpg" for i in range(num_images)], "text": text, "task_type": "llava_sft"}
    found = ours(tmp_path_factory.mktemp("row"), row)
    assert found == original(text)
    assert sum(token == "picture" for token, _ in found) == num_images * IMAGE_TOKENS
    assert sum(trained for _, trained in found) == sum(len(answer.split()) + 1 for _, answer in talk)


@pytest.mark.parametrize(
    ("text", "roles", "last"),
    [
        ("Human: q\nAI: a", ["user", "assistant"], "a"),
        ("S\nAI: b\nHuman: q\nAI: a", ["system", "user", "assistant"], "a"),
        ("S\nHuman: q\nAI: a\nHuman: and", ["system", "user", "assistant"], "a"),
        ("S\nHuman: q\nAI: a\nAI: b", ["system", "user", "assistant"], "a\nb"),
        ("S\nHuman: q\nAI: from OpenAI: yes", ["system", "user", "assistant"], "from OpenAI: yes"),
    ],
)
def test_turns_of_other_orders(tmp_path: Path, text: str, roles: list[str], last: str) -> None:
    messages = source(write(tmp_path, {"text": text, "image": ""}))[0].messages
    assert [message.role for message in messages] == roles
    assert messages[-1].text() == last


def test_pictures_of_a_question_without_an_answer_are_not_missed(tmp_path: Path) -> None:
    text = "S\nHuman: <image>\nHuman: q\nAI: a\nHuman: <image>\nHuman: and"
    sample = source(write(tmp_path, {"text": text, "image": ["1.jpg", "2.jpg"]}))[0]
    assert len(sample.images) == 2 and sample.messages[-1].text() == "a"
    assert coder().encode(sample).images == sample.images[:1]


@pytest.mark.parametrize(
    ("row", "reason", "names"),
    [
        ({"task_type": "x"}, "row_malformed", r"'text'.*only the keys \['task_type'\]"),
        ({"text": 3}, "row_malformed", "'text'.*found 3"),
        ({"text": "Hello"}, "no_conversations", "'text': no answer.*'AI: '.*'Hello'"),
        ({"text": "Human: q\nAI:  "}, "empty_answer", "'text'"),
        ({"text": "Human: \ud800\nAI: a"}, "row_malformed", "'text': not valid text"),
        ({"text": "Human: <image>\nAI: a"}, "image_marks", "1 <image> marks.*0 pictures"),
        ({"text": WITH_IMAGE, "image": ["a", "b"]}, "image_marks", "1 <image> marks.*2 pictures"),
        ({"text": WITH_IMAGE, "image": [3]}, "row_malformed", "'image'.*3"),
        ({"text": WITH_IMAGE, "image": ["../../x"]}, "image_outside_root", "'image'.*image_root"),
        ([1], "row_malformed", "expected an object"),
    ],
)
def test_a_bad_row_is_rejected_by_name(tmp_path: Path, row: Any, reason: str, names: str) -> None:
    data = source(write(tmp_path, {"text": TEXT_ONLY}, row))
    assert data[0].id == "0"
    with pytest.raises(SampleRejected, match=rf"train\.jsonl, row 1.*{names}") as caught:
        data[1]
    assert caught.value.reason == reason


def test_another_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('{"annotations": []}')
    with pytest.raises(DataError, match=r"some\.json.*'annotations'.*\{image, text, task_type\}"):
        source(path)
    with pytest.raises(DataError, match=r"absent\.json"):
        source(tmp_path / "absent.json")
