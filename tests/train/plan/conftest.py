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

# what each shipped recipe takes from a hub, by the part of the model whose path it is
HUB: dict[str, dict[str, dict[str, Any]]] = {
    "recipes/siglip_smollm2": {"vision_encoder": SIGLIP_SO400M, "llm": SMOLLM2_360M},
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
def sized_recipes() -> set[str]:
    """The presets whose models' sizes are known here."""
    return set(HUB)


@pytest.fixture(scope="session")
def load_full_size(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunConfig]:
    """A shipped recipe, with directories that hold nothing but config.json for its models; `llava_7b` or
    `llava_13b`. Settled as on a GPU."""

    def load(name: str) -> RunConfig:
        if name.startswith("llava_"):
            config = load_config(Path(__file__).parent / f"llava_1_5_{name.removeprefix('llava_')}.yaml")
        else:
            overrides = []
            for part, values in HUB[name].items():
                folder = tmp_path_factory.mktemp(part)
                (folder / "config.json").write_text(json.dumps(values))
                overrides.append(f"model.{part}.path={folder}")
            config = load_config(name, overrides)
        return with_row_tokens(with_precision(config, "bf16"), "cuda")

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
        if name not in made:
            made[name] = shape_captioner(config.model, chosen)
        captioner = made[name][0]
        prepare_stage(captioner, chosen.train)
        captioner.disable_gradient_checkpointing()
        if chosen.gradient_checkpointing:
            captioner.enable_gradient_checkpointing()
        return StageMemory(config.model, chosen, made[name])

    return get
