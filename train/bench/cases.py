"""What a benchmark runs: a model size, a length mix, a stage. Said once, in JSON, to every child process.

The LLMs are random weights of a real shape: speed and memory do not depend on the values, and nothing
has to be downloaded. Pictures are features of a frozen encoder, drawn from a seed: every contender gets
the same ones, and the encoder's own time is in nobody's row.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Component, Section
from prismcap.configs.schema.data import BatchConfig, DataConfig, MixItem
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import (
    Group,
    GroupConfig,
    KernelConfig,
    Precision,
    ScheduleConfig,
    StageConfig,
)

Size = Literal["tiny", "smollm2"]
StageName = Literal["align", "instruct"]

# SmolLM2-135M (HuggingFaceTB/SmolLM2-135M, config.json)
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LLMS: dict[Size, dict[str, Any]] = {"smollm2": SMOLLM2, "tiny": TINY}
# of the encoder; 1024 is CLIP ViT-L's (arXiv 2103.00020, table 20), which gives LLaVA-1.5 its 576 patches
VISION_WIDTHS: dict[Size, int] = {"smollm2": 1024, "tiny": 32}
# LLaVA-1.5's (arXiv 2310.03744, table of hyperparameters)
LEARNING_RATES: dict[StageName, dict[Group, float]] = {
    "align": {"connector": 1e-3},
    "instruct": {"connector": 2e-5, "llm": 2e-5},
}
_PATCH_PX = 14


class TrainCase(Section):
    """One comparison of training steps. row_tokens and rows_per_micro_batch are ours alone. max_tokens: of a
    sample; as row_tokens, where it is not given."""

    mix: str
    stage: StageName = "instruct"
    size: Size = "smollm2"
    precision: Precision = "bf16"
    samples_per_step: int = Field(default=16, ge=1)
    visual_tokens: int = Field(default=576, ge=1)
    row_tokens: int = Field(default=2048, ge=8)
    max_tokens: int | None = Field(default=None, ge=8)
    rows_per_micro_batch: int = Field(default=1, ge=1)
    num_threads: int = Field(default=1, ge=1)
    num_steps: int = Field(default=4, ge=1)
    seed: int = 0

    @property
    def longest_sample(self) -> int:
        return self.max_tokens or self.row_tokens


class LossCase(Section):
    """One comparison. The defaults are InternLM2's vocabulary over a narrow model."""

    vocabulary: int = Field(default=92544, ge=2)
    hidden: int = Field(default=512, ge=1)
    positions: int = Field(default=2048, ge=2)
    supervised_share: float = Field(default=0.2, gt=0, le=1)
    precision: Precision = "fp32"
    num_threads: int = Field(default=1, ge=1)
    seed: int = 0


class GenerateCase(Section):
    """Prompts of one picture and some text each. No token ends a text, so all are of max_new_tokens."""

    size: Size = "smollm2"
    precision: Precision = "bf16"
    num_prompts: int = Field(default=16, ge=1)
    prompt_tokens: int = Field(default=32, ge=2)
    visual_tokens: int = Field(default=576, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    num_threads: int = Field(default=1, ge=1)
    seed: int = 0


def model_config(size: Size, visual_tokens: int) -> ModelConfig:
    """The captioner: a frozen SigLIP-shaped tower that only gives its sizes, LLaVA's MLP, the LLM.

    Raises ConfigError when the pictures' tokens are no square grid.
    """
    side = math.isqrt(visual_tokens)
    if side * side != visual_tokens:
        raise ConfigError(
            f"--visual-tokens {visual_tokens}: a picture is a square grid of patches, so it must be a "
            f"square number, such as {side * side} or {(side + 1) ** 2}"
        )
    width = VISION_WIDTHS[size]
    tower = {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": _PATCH_PX * side,
        "patch_size": _PATCH_PX,
    }
    return ModelConfig(
        vision_encoder=Component.model_validate({"name": "siglip", "config": tower, "layer": -1}),
        connector=Component(name="mlp"),
        llm=Component.model_validate({"name": "random", "config": LLMS[size]}),
    )


def stage_config(case: TrainCase, compiled: bool) -> StageConfig:
    """The stage as a YAML file would say it, for the real engine. The lr is constant."""
    rates = LEARNING_RATES[case.stage]
    return StageConfig(
        train={group: GroupConfig(lr=rate) for group, rate in rates.items()},
        data=DataConfig(mix=(MixItem(name=case.mix),), max_tokens=case.longest_sample),
        template=Component(name="plain"),
        batch=batch_config(case),
        schedule=ScheduleConfig(name="constant", warmup_ratio=0.0, max_steps=1_000_000),
        precision=case.precision,
        kernels=KernelConfig(compile=compiled),
    )


def batch_config(case: TrainCase) -> BatchConfig:
    """Our packing."""
    return BatchConfig(
        samples_per_step=case.samples_per_step,
        row_tokens=case.row_tokens,
        rows_per_micro_batch=case.rows_per_micro_batch,
        images_per_micro_batch=case.samples_per_step,
    )
