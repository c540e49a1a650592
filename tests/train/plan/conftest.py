"""Small captioners whose memory is mostly activations, and the full-size ones of published models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import ModelConfig, RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.model.trainable import prepare_stage
from prismcap.train.plan.memory import StageMemory, shape_captioner

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
# config.json of google/siglip-so400m-patch14-384 and HuggingFaceTB/SmolLM2-360M-Instruct, the sizes alone
SIGLIP_SO400M = {
    "model_type": "siglip",
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
SMOLLM2_360M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
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
def recipe(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """configs/recipes/siglip_smollm2 with directories that hold nothing but config.json."""
    folder = tmp_path_factory.mktemp("hub")
    for name, values in (("siglip", SIGLIP_SO400M), ("smollm2", SMOLLM2_360M)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(values))
    paths = [f"model.vision_encoder.path={folder / 'siglip'}", f"model.llm.path={folder / 'smollm2'}"]
    return load_config("recipes/siglip_smollm2", paths)


@pytest.fixture(scope="session")
def stage_memory(recipe: RunConfig) -> Callable[[str, str], StageMemory]:
    """Of a stage of `recipe`, `llava_7b` or `llava_13b`, prepared for it: each big captioner is made once."""
    here = Path(__file__).parent
    llava = {f"llava_{size}": load_config(here / f"llava_1_5_{size}.yaml") for size in ("7b", "13b")}
    configs = llava | {"recipe": recipe}
    made: dict[str, Any] = {}

    def get(name: str, stage: str) -> StageMemory:
        config, chosen = configs[name], configs[name].stages[stage]
        if name not in made:
            made[name] = shape_captioner(config.model, chosen)
        captioner = made[name][0]
        prepare_stage(captioner, chosen.train)
        captioner.disable_gradient_checkpointing()
        if chosen.gradient_checkpointing:
            captioner.enable_gradient_checkpointing()
        return StageMemory(config.model, chosen, made[name])

    return get
