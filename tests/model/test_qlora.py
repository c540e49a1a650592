"""QLoRA's way through prismcap and peft, on a CPU: a stand-in for bitsandbytes does its arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.schema.run import ModelConfig

WORKERS = Path(__file__).parent / "workers"
LINEAR = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
LINEAR += [f"self_attn.{name}_proj" for name in "koqv"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What workers/qlora.py saw. A process of its own: peft looks for bitsandbytes once, when imported."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("qlora")
    llama = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    llama |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97, "initializer_range": 0.2}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ModelConfig.model_validate(
        {
            "vision_encoder": {"name": "siglip", "config": tower | {"image_size": 16, "patch_size": 8}},
            "connector": {"name": "mlp"},
            "llm": {"name": "random", "config": llama},
        }
    )
    (folder / "config.json").write_text(config.model_dump_json())
    path = os.pathsep.join([str(WORKERS / "stand_in"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(WORKERS / "qlora.py"), "config.json", "out.json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    values: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return values


def test_the_llms_linear_layers_are_quantized_but_for_its_head(found: dict[str, Any]) -> None:
    layers = [f"llm.model.layers.{i}.{name}" for i in range(2) for name in LINEAR]
    assert found["quantized"] == sorted(layers)
    assert found["rounding"] > 1e-3, "nothing was rounded"


def test_only_adapters_train_and_they_are_pefts_for_4_bits(found: dict[str, Any]) -> None:
    layers = [
        f"llm.model.layers.{i}.{name}" for i in range(2) for name in ("mlp.down_proj", "self_attn.q_proj")
    ]
    assert found["wrapped"] == sorted(layers) and found["by_peft_for_4bit"]
    expected = [f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"]
    expected += [f"connector.layers.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert found["trained"] == sorted(expected)
    assert found["losses"][-1] < 0.9 * found["losses"][0]


def test_merged_is_unmerged(found: dict[str, Any]) -> None:
    assert found["merged_apart"] < 1e-4 < 1e-1 < found["learned"]
    assert found["same_names"]


def test_the_merged_weights_are_the_rounded_ones_and_the_adapters(found: dict[str, Any]) -> None:
    assert found["formula_apart"] < 1e-6


def test_a_run_loaded_again_has_the_same_weights(found: dict[str, Any]) -> None:
    assert found["reloaded"]
