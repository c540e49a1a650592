"""Samples of a contrastive stage: a picture in one position, the supervised text, one target a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.schema.stage import StageConfig
from prismcap.data.encode import Encoder
from prismcap.data.pack import collate
from prismcap.data.pairs import PairEncoder, stage_encoder
from prismcap.data.schema import (
    IGNORE_INDEX,
    ImagePart,
    ImageRef,
    Message,
    Sample,
    SampleRejected,
    TextPart,
    TokenSpec,
)

MIX = [{"name": "llava_json", "path": "x.json"}]


@dataclass(frozen=True)
class Picture:
    name: str

    def load(self) -> Image.Image:
        raise AssertionError("opened")

    def fingerprint(self) -> str:
        return self.name


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<|im_end|>")


def encoder(
    tokenizer: Any, template: str = "plain", contrastive: bool = True, max_tokens: int = 48
) -> Encoder:
    groups = ("vision_encoder", "text_tower") if contrastive else ("connector",)
    stage = {
        "train": {group: {"lr": 1e-3} for group in groups},
        "data": {"mix": MIX, "max_tokens": max_tokens},
        "template": {"name": template},
        "batch": {"packing": not contrastive},
        "schedule": {"max_steps": 1},
    }
    return stage_encoder(StageConfig.model_validate(stage), tokenizer, TokenSpec(tokens_per_tile=9))


def sample(text: str, num_pictures: int = 1, shown: int | None = None) -> Sample:
    parts = [ImagePart(i % max(1, num_pictures)) for i in range(num_pictures if shown is None else shown)]
    return Sample(
        id="s",
        images=tuple(Picture(f"{i}{text}") for i in range(num_pictures)),
        messages=(
            Message("user", (*parts, TextPart("Describe it."))),
            Message("assistant", (TextPart(text),), train=True),
        ),
        source="test",
    )


@pytest.mark.parametrize(("template", "end"), [("plain", "\n"), ("chatml", "<|im_end|>")])
def test_a_pair_is_the_picture_and_what_is_supervised(tokenizer: Any, template: str, end: str) -> None:
    found = encoder(tokenizer, template).encode(sample("A tiger."))
    assert isinstance(encoder(tokenizer, template), PairEncoder)
    assert found.spans == ((0, 0, 1),)
    assert int(found.input_ids[0]) == tokenizer.pad_token_id
    assert tokenizer.decode(found.input_ids[1:]).rstrip("\n") == f"A tiger.{end}".rstrip("\n")
    assert found.labels.tolist() == [IGNORE_INDEX] * (len(found) - 1) + [int(found.input_ids[-1])]
    assert found.num_target_tokens == 1


def test_targets_of_a_batch_are_its_pairs(tokenizer: Any) -> None:
    made = encoder(tokenizer)
    items = [made.encode(sample(text)) for text in ("A tiger.", "A hammer on the left.", "An owl.")]
    inputs: dict[ImageRef, Any] = {item.images[0]: (torch.zeros(1, 3, 8, 8), (8, 8)) for item in items}
    batch = collate([[item] for item in items], made.pad_id, inputs)
    assert batch.num_target_tokens == 3
    assert batch.spans.tolist() == [[i, i, 0, 1] for i in range(3)]


def test_a_caption_stage_has_the_usual_encoder(tokenizer: Any) -> None:
    made = encoder(tokenizer, contrastive=False)
    assert type(made) is Encoder
    assert made.encode(sample("A tiger.")).spans == ((0, 0, 9),)


@pytest.mark.parametrize(("num_pictures", "shown"), [(0, 0), (2, 2), (1, 2)])
def test_without_exactly_one_picture_it_is_no_pair(tokenizer: Any, num_pictures: int, shown: int) -> None:
    with pytest.raises(SampleRejected, match=f"test, sample 's': it shows {shown} pictures") as caught:
        encoder(tokenizer).encode(sample("A tiger.", num_pictures, shown))
    assert caught.value.reason == "not_a_pair"


def test_a_long_text_is_cut_and_counted(tokenizer: Any) -> None:
    found = encoder(tokenizer, max_tokens=16).encode(sample("A tiger on the left and a hammer."))
    assert len(found) == 16
    assert found.cut_tokens > 0
    assert found.num_target_tokens == 1
