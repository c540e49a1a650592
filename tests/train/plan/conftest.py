"""Small captioners whose memory is mostly activations, and the full-size ones of published models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import ModelConfig, RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.model.trainable import prepare_stage
from prismcap.train.plan.memory import StageMemory, shape_captioner
from prismcap.train.precision import with_precision
from prismcap.train.settle import with_row_tokens

TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 7,  # more than the planner runs
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


@pytest.fixture
def small_model() -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "vision_encoder": {"name": "siglip", "config": TOWER},
            "connector": {"name": "mlp"},
            "llm": {"name": "random", "config": LLAMA},
        }
    )


@pytest.fixture
def make_stage() -> Callable[..., StageConfig]:
    """A stage of the small model; keyword arguments replace its keys."""

    def make(**keys: Any) -> StageConfig:
        values: dict[str, Any] = {
            "train": {"connector": {"lr": 1e-3}, "llm": {"lr": 1e-3}},
            "data": {"mix": [{"name": "llava_json", "path": "none.json"}], "max_tokens": 128},
            "template": {"name": "plain"},
            "batch": {"row_tokens": 256, "rows_per_micro_batch": 2, "images_per_micro_batch": 6},
            "schedule": {"max_steps": 10},
            "precision": "fp32",
        }
        return StageConfig.model_validate(values | keys)

    return make


@pytest.fixture(scope="session")
def load_full_size() -> Callable[[str], RunConfig]:
    """A shipped recipe, its models by their published sizes (model/sizes.yaml), settled as on a GPU."""

    def load(name: str) -> RunConfig:
        return with_row_tokens(with_precision(load_config(name), "bf16"), "cuda")

    return load


@pytest.fixture(scope="session")
def stage_memory(load_full_size: Callable[[str], RunConfig]) -> Callable[[str, str], StageMemory]:
    """Of a stage of what load_full_size loads, prepared for it: each big captioner is made once."""
    configs: dict[str, RunConfig] = {}
    made: dict[str, Any] = {}

    def get(name: str, stage: str) -> StageMemory:
        if name not in configs:
            configs[name] = load_full_size(name)
        config, chosen = configs[name], configs[name].stages[stage]
        # adapters of shapes are made with the captioner, inside of shapes_only
        adapted = any(group.lora for group in chosen.train.values())
        key = f"{name} {stage}" if adapted else name
        if key not in made:
            made[key] = shape_captioner(config.model, chosen)
        captioner = made[key][0]
        if not adapted:
            prepare_stage(captioner, chosen.train)
        captioner.disable_gradient_checkpointing()
        if chosen.gradient_checkpointing:
            captioner.enable_gradient_checkpointing()
        return StageMemory(config.model, chosen, made[key])

    return get
