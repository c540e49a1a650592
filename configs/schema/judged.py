"""A judged evaluation: a protocol's questions, the answers of one or more models, and who judges them."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from prismcap.configs.schema.base import Component, Section
from prismcap.configs.schema.prism import Decoding, LocalConfig, PriceConfig
from prismcap.configs.schema.run import RUN_NAME

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]*"


class JudgedConfig(Section):
    """The whole of one judged evaluation's YAML file, after `base:` and the overrides."""

    name: str = Field(pattern=RUN_NAME)
    seed: int = 0
    output_dir: str = "checkpoints"
    protocol: Component
    answers: dict[str, str] = Field(
        min_length=1, description="model's name -> JSONL of its answers: question_id and text (or answer)"
    )
    judge: Component | None = Field(
        default=None, description="a reasoner (openai, hf); none: people alone, on the rating page"
    )
    decoding: Decoding = Decoding()
    repeats: int = Field(
        default=1, ge=1, description="how often each request is put to the judge: its agreement with itself"
    )
    images: str | None = Field(default=None, description="folder of the pictures, for the rating page")
    price: PriceConfig | None = Field(default=None, description="of the judge")
    local: LocalConfig = LocalConfig()

    @field_validator("answers")
    @classmethod
    def _names(cls, answers: dict[str, str]) -> dict[str, str]:
        for name in answers:
            if not re.fullmatch(MODEL_NAME, name):
                raise ValueError(
                    f"the name {name!r} must be letters, digits and ._+-, a letter or digit first"
                )
        return answers

    @model_validator(mode="after")
    def _repeats_can_differ(self) -> JudgedConfig:
        if self.repeats > 1 and not self.decoding.temperature and not self.decoding.thinking_tokens:
            raise ValueError(
                f"repeats is {self.repeats}, and a greedy judge says the same each time: set "
                "decoding.temperature above 0 (0.7, say), or repeats to 1"
            )
        return self
