"""Loss curves of two tiny recipes, held against a plain loop over transformers' LLaVA (tests/assets/golden).

rel 1e-4 over eight steps in each stage: our rows are packed, the loop's are padded, so sums are taken in
another order.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prismcap.configs.schema.run import RunConfig
from prismcap.model.captioner import Captioner
from prismcap.model.loss import supervised_positions
from prismcap.train.run import run_training

GOLDEN = Path(__file__).parent.parent / "assets" / "golden"
NAMES = ("siglip_chatml", "clip_vicuna")


@pytest.fixture(scope="module")
def make() -> dict[str, Any]:
    return runpy.run_path(str(GOLDEN / "make.py"))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    losses: dict[str, Any] = json.loads((GOLDEN / "losses.json").read_text())["losses"]
    return losses


def groups(**lr: float) -> dict[str, Any]:
    return {group: {"lr": value} for group, value in lr.items()}


def our_config(name: str, folder: Path, **changes: Any) -> RunConfig:
    """The recipe as a config of this project."""
    siglip = name == "siglip_chatml"
    schedule = {"name": "cosine" if siglip else "linear", "warmup_ratio": 0.0 if siglip else 0.25}
    decay = {"weight_decay": 0.0 if siglip else 0.1}

    def stage(template: str, train: dict[str, Any], rows: str, num_rows: int) -> dict[str, Any]:
        return {
            "train": {group: values | decay for group, values in train.items()},
            "data": {"mix": [{"name": "llava_json", "path": str(GOLDEN / rows)}], "num_workers": 0},
            "template": {"name": template},
            "batch": {"samples_per_step": num_rows, "rows_per_micro_batch": 1},
            "optimizer": {"eps": 1e-3, "clip_norm": 1.0 if siglip else 0.5},
            "schedule": {"max_steps": 8, **schedule},
            "precision": "fp32",
        } | changes

    full = (
        groups(connector=2e-3, llm=5e-3) if siglip else groups(connector=2e-2, llm=1e-2, vision_encoder=2e-3)
    )
    return RunConfig.model_validate(
        {
            "name": name,
            "output_dir": str(folder / "runs"),
            "num_threads": 1,
            "model": {
                "vision_encoder": {"name": "siglip" if siglip else "clip", "path": str(folder / "tower")},
                "connector": {"name": "mlp"},
                "llm": {"name": "causal_lm", "path": str(folder / "llm")},
            },
            "stages": {
                "align": stage("plain", groups(connector=2e-1), "captions.json", 3),
                "instruct": stage("chatml" if siglip else "vicuna_v1", full, "conversations.json", 5),
            },
        }
    )


def our_losses(make: dict[str, Any], name: str, folder: Path) -> dict[str, list[float]]:
    make["write_models"](make["RECIPES"][name], folder)

    def fill(captioner: Captioner, _: RunConfig) -> None:
        make["fill"](captioner.connector.layers, 3)

    run_dir = run_training(our_config(name, folder), before_training=[fill])
    found: dict[str, list[float]] = {}
    for line in (run_dir / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["stage"], []).append(record["loss"])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_our_curve_is_the_golden_one(
    make: dict[str, Any], golden: dict[str, Any], name: str, tmp_path: Path
) -> None:
    found = our_losses(make, name, tmp_path)
    assert found.keys() == golden[name].keys() == {"align", "instruct"}
    for stage, losses in golden[name].items():
        assert found[stage] == pytest.approx(losses, rel=1e-4), stage
        assert losses[-1] < 0.97 * losses[0], "300 times the tolerance"


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_are_off_by_one_leave_the_golden_curve(
    make: dict[str, Any], golden: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: in every batch each label stands one position too far on."""

    def shifted(labels_BT: Tensor, position_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        return supervised_positions(labels_BT.roll(1, dims=1), position_ids_BT)

    monkeypatch.setattr("prismcap.model.captioner.supervised_positions", shifted)
    found = our_losses(make, name, tmp_path)
    for stage, losses in golden[name].items():
        assert len(found[stage]) == len(losses)
        assert found[stage] != pytest.approx(losses, rel=1e-3), f"{stage}: ten times the tolerance"


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_numbers_are_those_of_the_command(
    make: dict[str, Any], golden: dict[str, Any], name: str
) -> None:
    with torch.random.fork_rng():
        found = make["curves"](name)
    for stage, losses in golden[name].items():
        assert found[stage] == pytest.approx(losses, rel=1e-4), stage
