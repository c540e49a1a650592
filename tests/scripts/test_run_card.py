"""What a model card says of a run is what its config and metrics.json say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import RunConfig
from prismcap.evaluate.intervals import wilson
from prismcap.evaluate.results import weights_id
from prismcap.scripts.run_card import run_sections


def make_config() -> RunConfig:
    align: dict[str, Any] = {
        "train": {"connector": {"lr": 1e-3}},
        "data": {"mix": [{"name": "scenes", "num_scenes": 7, "objects": "both"}], "max_tokens": 99},
        "template": {"name": "plain"},
        "schedule": {"epochs": 1},
    }
    instruct: dict[str, Any] = {
        "train": {"connector": {"lr": 2e-5}, "llm": {"lr": 2e-4, "lora": {"rank": 8}}},
        "data": {
            "mix": [
                {"name": "llava_json", "path": "/data/of/mine/rows.json", "image_root": "/data/of/mine"},
                {"name": "stamps", "repeat": 3},
            ],
            "geometry": "pad",
        },
        "template": {"name": "chatml"},
        "schedule": {"max_steps": 12, "name": "constant"},
        "batch": {"samples_per_step": 6},
    }
    part = {"name": "any"}
    model = {"vision_encoder": part, "connector": part, "llm": part}
    values = {"name": "run", "seed": 5, "model": model, "stages": {"align": align, "instruct": instruct}}
    return RunConfig.model_validate(values)


def rows_of(text: str, section: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    body = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_recipe_and_data_of_every_stage() -> None:
    text = run_sections(make_config())
    first, second = rows_of(text, "Training")
    assert first[:4] == ["align", "connector: whole (0.001)", "plain", "resize"]
    assert second[1] == "connector: whole (2e-05); llm: LoRA of rank 8 (0.0002)"
    assert second[4:] == ["512 tokens", "6", "12 steps, constant, warm-up 0.03"]
    scenes, rows, stamps = rows_of(text, "Data")
    assert scenes[:2] == ["align", "scenes"] and "num_scenes: 7" in scenes[2]
    assert "CC-BY-SA-4.0" in scenes[3] and "GPL-2.0-or-later" in scenes[3]
    assert rows[2] == "path: rows.json" and rows[3] == "that of the file's publisher"
    assert stamps[2] == "taken 3 times" and "GPL" in stamps[3] and "CC-BY" not in stamps[3]
    assert "/data/of" not in text, "a path of this machine"
    assert "## Figures" not in text


def write_metrics(run: Path, weights: str) -> None:
    rate = wilson(60, 80).as_dict()
    controls = {"blank": wilson(8, 80).as_dict(), "shuffled": wilson(16, 80).as_dict()}
    about = {"weights": weights, "complete": True}
    difference = {"mean": 1.0, "low": 0.5, "high": 1.5}
    metrics = {
        "about": about,
        "unseen": {"short": {**rate, "controls": controls}},
        "align": {"loss": difference},
    }
    (run / "metrics.json").write_text(json.dumps(metrics))


def test_figures_stand_with_their_interval_and_controls(tmp_path: Path) -> None:
    (tmp_path / "instruct" / "final").mkdir(parents=True)
    (tmp_path / "instruct" / "final" / "weights.safetensors").write_bytes(b"weights")
    assert "## Figures" not in run_sections(make_config(), tmp_path), "nothing was measured"
    write_metrics(tmp_path, weights_id(tmp_path, "instruct"))
    rate = wilson(60, 80)
    interval = f"{rate.low:.1%} to {rate.high:.1%}"
    found = rows_of(run_sections(make_config(), tmp_path), "Figures")
    assert found == [["unseen", "short", "75.0%", interval, "80", "10.0%", "20.0%"]]
    write_metrics(tmp_path, "of other weights")
    assert "## Figures" not in run_sections(make_config(), tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ConfigError, match=r"metrics\.json: not valid JSON"):
        run_sections(make_config(), tmp_path)
    for wrong in ("[]", '"text"', '{"about": []}'):
        (tmp_path / "metrics.json").write_text(wrong)
        with pytest.raises(ConfigError, match=r"metrics\.json: expected a mapping"):
            run_sections(make_config(), tmp_path)


def test_parts_of_a_step_shards_and_steps_of_warm_up() -> None:
    config = make_config()
    mix = [
        {"name": "webdataset", "path": ["/data/of/mine/a.tar", "/data/of/mine/b"], "per_step": 5},
        {"name": "webdataset", "path": "/data/of/mine/{00..03}.tar", "per_step": 1},
    ]
    stage = config.stages["instruct"].model_dump(exclude_none=True)
    stage["data"]["mix"] = mix
    stage["schedule"] = {"max_steps": 12, "warmup_steps": 4}
    text = run_sections(RunConfig.model_validate(config.model_dump() | {"stages": {"instruct": stage}}))
    assert rows_of(text, "Training")[0][-1] == "12 steps, cosine, warm-up 4 steps"
    shards, pattern = rows_of(text, "Data")
    assert shards[2] == "path: a.tar and b, 5 of every step"
    assert pattern[2] == "path: {00..03}.tar, 1 of every step"
