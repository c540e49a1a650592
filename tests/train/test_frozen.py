"""A frozen group held in bf16 changes nothing but the memory: not one bit of losses, gradients or weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import ModelConfig, RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.frozen import held_weights, hold_frozen
from prismcap.model.precision import autocast
from prismcap.model.trainable import prepare_stage
from prismcap.model.weights import load_weights
from prismcap.train import run
from prismcap.train.plan.worst_case import worst_batch

Make = Callable[..., RunConfig]
BF16 = "stages.*.precision=bf16"
TRAINS = {
    "align": "stages.align.train={connector: {lr: 1e-3}}",
    "lora": "stages.align.train={connector: {lr: 1e-3}, llm: {lr: 1e-3, lora: {rank: 2}}}",
    "part": "stages.align.train={connector: {lr: 1e-3}, llm: {lr: 1e-3, only: ['*.layers.1.*']}}",
}
# convolutions and BatchNorm
TIMM = {"name": "timm", "model": "test_efficientnet", "image_size": 64}


def captioner_of(model: ModelConfig, stage: StageConfig) -> Captioner:
    captioner = build_captioner(model)
    prepare_stage(captioner, stage.train)
    return captioner


def step(captioner: Captioner, stage: StageConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a micro-batch, from random pictures."""
    batch = worst_batch(captioner, stage)
    assert batch.tiles is not None
    batch.tiles = torch.rand(batch.tiles.shape, generator=torch.Generator().manual_seed(0))
    with autocast(torch.device("cpu"), stage.precision):
        loss = captioner.train()(batch).loss_sum
    loss.backward()
    gradients = {name: value.grad for name, value in captioner.named_parameters() if value.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("vision", ["siglip", "timm"])
@pytest.mark.parametrize("trains", TRAINS)
def test_a_step_is_the_same_bit_for_bit(make_config: Make, trains: str, vision: str) -> None:
    overrides = [BF16, TRAINS[trains]]
    if vision == "timm":
        overrides.append(f"model.vision_encoder={TIMM}")
    config = make_config(*overrides)
    stage = config.stages["align"]
    plain, held = captioner_of(config.model, stage), captioner_of(config.model, stage)
    hold_frozen(held, "bf16")
    dtypes = {name: value.dtype for name, value in held.named_parameters()}
    assert any(dtype is torch.bfloat16 for dtype in dtypes.values())
    loss, gradients = step(plain, stage)
    held_loss, held_gradients = step(held, stage)
    assert torch.equal(loss, held_loss)
    assert gradients.keys() == held_gradients.keys() and len(gradients) > 2
    assert all(torch.equal(value, held_gradients[name]) for name, value in gradients.items())
    assert all(held.get_parameter(name).dtype is torch.float32 for name in gradients)


def test_what_is_held(make_config: Make) -> None:
    """Linear layers of whole frozen groups: no norms, and no embedding, which the head shares."""
    config = make_config(BF16)
    captioner = captioner_of(config.model, config.stages["align"])
    chosen = {id(parameter) for parameter in held_weights(captioner)}
    names = {name for name, value in captioner.named_parameters() if id(value) in chosen}
    assert not any(name.startswith("connector.") for name in names)
    assert {name for name in names if name.startswith("llm.")} == {
        name for name, _ in captioner.named_parameters() if name.startswith("llm.") and "proj" in name
    }
    assert "vision_encoder.tower.embeddings.patch_embedding.weight" in names
    assert not any("norm" in name or "position_embedding" in name for name in names)
    hold_frozen(captioner, "fp32")
    assert {value.dtype for value in captioner.parameters()} == {torch.float32}


def test_a_group_of_which_a_part_trains_stays_whole(make_config: Make) -> None:
    for trains in ("lora", "part"):
        config = make_config(BF16, TRAINS[trains])
        captioner = captioner_of(config.model, config.stages["align"])
        hold_frozen(captioner, "bf16")
        llm: Any = captioner.llm
        assert {value.dtype for value in llm.parameters()} == {torch.float32}


def test_a_run_is_the_same_bit_for_bit(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages: the second starts from the LLM's weights as they were, not from what the first held."""

    def train(name: str) -> dict[str, Tensor]:
        config = load_config(world / "config.yaml", [f"output_dir={tmp_path}", f"name={name}", BF16])
        folder = run.run_training(config)
        return {
            f"{stage}/{key}": value
            for stage in config.stages
            for key, value in load_weights(folder / stage / "final" / "weights.safetensors").items()
        }

    held_layers: list[type[nn.Module]] = []
    hold = run.hold_frozen

    def watched(captioner: Captioner, precision: Any) -> None:
        hold(captioner, precision)
        held_layers.extend(type(value) for value in captioner.parameters() if value.dtype is torch.bfloat16)

    monkeypatch.setattr(run, "hold_frozen", watched)
    held = train("held")
    assert held_layers
    monkeypatch.setattr(run, "hold_frozen", lambda *_: None)
    plain = train("plain")
    assert held.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in held.items())
