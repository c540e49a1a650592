"""A tiny run as training leaves it, and its export by the command: for tests of commands that take one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner

from prismcap.configs.load import load_config, to_yaml
from prismcap.configs.schema.run import RunConfig
from prismcap.model.build import build_captioner
from prismcap.model.trainable import prepare_stage, trainable_state
from prismcap.model.weights import save_weights
from prismcap.scripts.commands.export import export

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
SIGLIP = {"name": "siglip", "config": TOWER}
CONNECTOR_ALONE = {"connector": {"lr": 0.1}}
PROMPT = "What do you see?"


def run_values(
    folder: Path,
    connector: dict[str, Any],
    rows: str = "none.json",
    vision_encoder: dict[str, Any] = SIGLIP,
    train: dict[str, Any] = CONNECTOR_ALONE,
) -> dict[str, Any]:
    """The config of a run in `folder`: vision encoder, connector and a LLaMA, all small and random."""
    stage = {
        "train": train,
        "data": {"mix": [{"name": "llava_json", "path": rows, "image_root": "."}], "geometry": "pad"},
        "template": {"name": "chatml"},
        "schedule": {"max_steps": 1},
    }
    return {
        "name": folder.name,
        "output_dir": str(folder.parent),
        "model": {
            "vision_encoder": vision_encoder,
            "connector": connector,
            "llm": {"name": "random", "config": LLAMA, "tokenizer": "cache:models/smollm2-135m-instruct"},
        },
        "stages": {"align": stage},
    }


def make_run(
    folder: Path,
    connector: dict[str, Any],
    vision_encoder: dict[str, Any] = SIGLIP,
    train: dict[str, Any] = CONNECTOR_ALONE,
) -> Path:
    """A run folder as training leaves it: what `train` says has other weights than the initial ones."""
    values = run_values(folder, connector, vision_encoder=vision_encoder, train=train)
    config = RunConfig.model_validate(values)
    (folder / "align" / "final").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    config = load_config(folder / "config.yaml")
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages["align"].train, seed=config.seed)
    state = {name: value + 0.5 for name, value in trainable_state(captioner).items()}
    save_weights(folder / "align" / "final" / "weights.safetensors", state)
    return folder


def export_run(run: Path) -> Path:
    """`prismcap export RUN --prompt PROMPT`; returns the export."""
    done = CliRunner().invoke(export, [str(run), "--prompt", PROMPT], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"prismcap caption {run / 'model'}" in done.stdout
    return run / "model"
