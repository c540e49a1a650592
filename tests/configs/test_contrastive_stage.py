"""What a contrastive stage may say, and what it is told otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prismcap.configs.schema.stage import StageConfig

DATA = {"mix": [{"name": "stamps"}], "max_tokens": 48}


def stage(**changes: Any) -> StageConfig:
    values: dict[str, Any] = {
        "train": {"vision_encoder": {"lr": 1e-3}, "text_tower": {"lr": 1e-3}},
        "data": DATA,
        "template": {"name": "plain"},
        "batch": {"packing": False},
        "schedule": {"epochs": 1},
    }
    return StageConfig.model_validate(values | changes)


def test_what_trains_says_the_kind() -> None:
    assert stage().kind == "contrastive"
    assert stage(train={"connector": {"lr": 1e-3}}).kind == "caption"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"text_tower": {"lr": 1}}}, "give it vision_encoder and text_tower alone"),
        (
            {"train": {"vision_encoder": {"lr": 1}, "text_tower": {"lr": 1}, "connector": {"lr": 1}}},
            "train has vision_encoder, text_tower, connector",
        ),
        (
            {"train": {"vision_encoder": {"lr": 1}, "text_tower": {"lr": 1, "lora": {}}}},
            "trains whole, without lora and only",
        ),
        (
            {"train": {"vision_encoder": {"lr": 1, "sizes": {}}, "text_tower": {"lr": 1}}},
            "train.vision_encoder.sizes: only the text_tower has sizes",
        ),
        (
            {
                "train": {
                    "vision_encoder": {"lr": 1},
                    "text_tower": {"lr": 1, "sizes": {"max_text_tokens": 32}},
                }
            },
            "data.max_tokens=48 is more than train.text_tower.sizes.max_text_tokens=32",
        ),
        (
            {"train": {"vision_encoder": {"lr": 1, "lora": {}}, "text_tower": {"lr": 1}}},
            "train.vision_encoder.lora: the pooling head",
        ),
        ({"batch": {}}, "batch.packing must be false"),
        ({"data": DATA | {"geometry": "anyres"}}, "anyres makes several tiles of a picture"),
        (
            {"batch": {"packing": False, "rows_per_micro_batch": 65}},
            "batch.images_per_micro_batch=64 is less than batch.rows_per_micro_batch=65",
        ),
        ({"engine": {"name": "deepspeed"}}, "deepspeed is not supported: take torch"),
        ({"feature_cache": True}, "feature_cache needs a frozen vision encoder"),
    ],
)
def test_what_cannot_be_is_named_with_its_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        stage(**changes)


def test_heads_must_divide_the_width() -> None:
    sizes = {"hidden_size": 10, "num_attention_heads": 3}
    with pytest.raises(ValidationError, match="hidden_size=10 is not divisible by num_attention_heads=3"):
        stage(train={"vision_encoder": {"lr": 1}, "text_tower": {"lr": 1, "sizes": sizes}})
