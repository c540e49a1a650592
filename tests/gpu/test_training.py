"""Training on a GPU: the engines, precisions, kernels and optimisers follow the same losses as plain fp32."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prismcap.configs.load import load_config
from prismcap.model.build import build_captioner
from prismcap.model.trainable import finish_stage, prepare_stage
from prismcap.train.distributed import Ranks
from prismcap.train.fit import StepEvent
from prismcap.train.run import build_engine, run_training, stage_loader

WORKERS = Path(__file__).parents[1] / "train" / "workers"
# dropout draws other numbers on another device
NO_DROPOUT = "stages.instruct.train.llm.lora.dropout=0.0"
FULL = "stages.instruct.train={connector: {lr: 0.005}, llm: {lr: 0.01}}"
# with AdamW's own eps, rounding decides where a weight goes whose gradient is zero but for rounding
EPS = "stages.*.optimizer.eps=1e-3"
Measured = Callable[[str], None]


class Stop(Exception):
    pass


@pytest.fixture
def losses(world: Path, tmp_path: Path) -> Callable[..., list[float]]:
    """The loss of every step of a run with overrides, both stages."""

    def train(device: torch.device, name: str, *overrides: str, **arguments: Any) -> list[float]:
        fixed = [f"output_dir={tmp_path}", f"name={name}", EPS]
        config = load_config(world / "config.yaml", [*fixed, *overrides])
        run_training(config, ranks=Ranks(device=device), **arguments)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    return train


def apart(found: list[float], expected: list[float]) -> float:
    """The largest difference, as a share of the loss."""
    assert len(found) == len(expected) > 5
    return max(abs(a - b) / b for a, b in zip(found, expected, strict=True))


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_losses_are_those_of_the_cpu(device: torch.device, losses: Any, measured: Measured) -> None:
    """Engine torch in fp32, both stages, LoRA in the second: the losses of a CPU"""
    expected = losses(torch.device("cpu"), "cpu", NO_DROPOUT)
    largest = apart(losses(device, "here", NO_DROPOUT), expected)
    measured(f"losses differ by {largest:.1e}")
    assert largest < 2e-3
    # that the comparison can fail
    assert apart(losses(device, "other", NO_DROPOUT, "seed=4"), expected) > 2e-2


def test_bf16_follows_fp32(device: torch.device, losses: Any, measured: Measured) -> None:
    """bf16 with fp32 weights: within 5% of the losses in fp32"""
    expected = losses(device, "fp32", NO_DROPOUT, FULL)
    largest = apart(losses(device, "bf16", NO_DROPOUT, FULL, "stages.*.precision=bf16"), expected)
    measured(f"losses differ by {largest:.1e}")
    assert 0 < largest < 5e-2


def test_activation_checkpointing_changes_nothing(
    device: torch.device, losses: Any, measured: Measured
) -> None:
    """Activation checkpointing: the same losses, dropout included"""
    expected = losses(device, "plain")
    largest = apart(losses(device, "again", "stages.*.gradient_checkpointing=true"), expected)
    measured(f"losses differ by {largest:.1e}")
    assert largest < 1e-3


def test_a_resumed_run_is_the_uninterrupted_one(
    device: torch.device, losses: Any, measured: Measured
) -> None:
    """Stopped between checkpoints and resumed, dropout included: the losses of the uninterrupted run"""

    def stop(event: StepEvent) -> None:
        if (event.stage, event.step) == ("instruct", 5):
            raise Stop

    expected = losses(device, "whole")
    with pytest.raises(Stop):
        losses(device, "stopped", callbacks=[stop])
    largest = apart(losses(device, "stopped", resume="auto"), expected)
    measured(f"losses differ by {largest:.1e}")
    assert largest < (1e-3 if device.type == "cuda" else 1e-12)


@pytest.mark.parametrize(
    "where", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_zero3_is_plain_torch(
    where: str, world: Path, tmp_path: Path, launch: Any, measured: Measured
) -> None:
    """DeepSpeed ZeRO-3 over NCCL under torchrun: losses and gradient norms of engine torch"""
    pytest.importorskip("deepspeed")
    zero3 = ["stages.instruct.engine.name=deepspeed", "stages.instruct.engine.zero_stage=3"]
    jobs = {"torch": {"overrides": [FULL, EPS]}, "zero3": {"overrides": [FULL, EPS, *zero3]}}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if where == "cpu" else {}
    arguments = [
        str(WORKERS / "engines_on_ranks.py"),
        str(world / "config.yaml"),
        str(tmp_path),
        json.dumps(jobs),
    ]
    launch("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", *arguments, **hidden)
    results = json.loads((tmp_path / "results.json").read_text())
    found, expected = results["zero3"], results["torch"]
    largest = max(abs(a / b - 1) for a, b in zip(found["losses"], expected["losses"], strict=True))
    measured(f"losses differ by {largest:.1e}")
    assert largest < 1e-4
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)
    assert found["evaluated"] == pytest.approx(expected["evaluated"], rel=1e-3)


@pytest.mark.gpu
def test_compiled_layers_follow_eager_ones(losses: Any, measured: Measured) -> None:
    """torch.compile (kernels.compile): the losses of eager layers"""
    device = torch.device("cuda")
    expected = losses(device, "eager", NO_DROPOUT, FULL)
    largest = apart(losses(device, "compiled", NO_DROPOUT, FULL, "stages.*.kernels.compile=true"), expected)
    measured(f"losses differ by {largest:.1e}")
    assert largest < 5e-3


@pytest.mark.gpu
def test_liger_follows_the_kernels_of_torch(losses: Any, measured: Measured) -> None:
    """Liger's kernels (kernels.liger): the losses of torch's own"""
    needs("liger_kernel")
    device = torch.device("cuda")
    expected = losses(device, "torch", NO_DROPOUT, FULL)
    largest = apart(losses(device, "liger", NO_DROPOUT, FULL, "stages.*.kernels.liger=true"), expected)
    measured(f"losses differ by {largest:.1e}")
    assert 0 < largest < 5e-3


def state_bytes_and_losses(world: Path, device: torch.device, *overrides: str) -> tuple[int, list[float]]:
    """Bytes of the optimiser's state, and the losses, of ten steps of full training."""
    # wide enough that most of its tensors are quantised (those of 4,096 elements and more)
    wide = ["model.llm.config.hidden_size=128", "model.llm.config.intermediate_size=256"]
    config = load_config(world / "config.yaml", [FULL, *wide, *overrides])
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages["instruct"].train, seed=config.seed)
    captioner.to(device)
    ranks = Ranks(device=device)
    engine: Any = build_engine(config, "instruct", captioner, 10, ranks)
    loader = stage_loader(config, "instruct", captioner, ranks)
    found = [engine.train_step(loader.load(step).micro_batches).loss for step in range(10)]
    tensors = [value for state in engine.optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor)), found


@pytest.mark.gpu
def test_8bit_adamw_needs_a_third_of_the_state(world: Path, measured: Measured) -> None:
    """8-bit AdamW (bitsandbytes): losses within 10% of AdamW's, in under 0.35 of its state's bytes"""
    needs("bitsandbytes")
    device = torch.device("cuda")
    plain_bytes, expected = state_bytes_and_losses(world, device)
    found_bytes, found = state_bytes_and_losses(world, device, "stages.*.optimizer.name=adamw_8bit")
    measured(f"losses differ by {apart(found, expected):.1e}, {found_bytes / plain_bytes:.2f} of the bytes")
    assert apart(found, expected) < 0.1
    assert found_bytes < 0.35 * plain_bytes


def test_the_state_of_adamw_is_two_moments(world: Path) -> None:
    """The measure of optimiser state: AdamW keeps two fp32 moments for each weight"""
    num_bytes, found = state_bytes_and_losses(world, torch.device("cpu"))
    config = load_config(world / "config.yaml")
    captioner = build_captioner(config.model, seed=0)
    assert num_bytes > 8 * sum(weight.numel() for weight in captioner.connector.parameters())
    assert found[-1] < found[0]


@pytest.mark.gpu
def test_qlora_is_merged_as_it_trained(world: Path, losses: Any, measured: Measured) -> None:
    """QLoRA (bitsandbytes): losses within 20% of LoRA's, under 0.3 of its bytes, merged as trained"""
    needs("bitsandbytes")
    device = torch.device("cuda")
    lora = "stages.instruct.train={{connector: {{lr: 0.005}}, llm: {{lr: 0.01, lora: {{rank: 4, {}}}}}}}"
    # blocks of 64 weights
    wide = ["model.llm.config.hidden_size=128", "model.llm.config.intermediate_size=256"]
    plain, small = lora.format("alpha: 8"), lora.format("alpha: 8, quantize: nf4")
    largest = apart(losses(device, "qlora", small, *wide), losses(device, "lora", plain, *wide))
    num_bytes = []
    for train in (plain, small):
        config = load_config(world / "config.yaml", [train, *wide])
        captioner = build_captioner(config.model, seed=config.seed)
        prepare_stage(captioner, config.stages["instruct"].train, seed=config.seed)
        captioner.to(device)
        batch = stage_loader(config, "instruct", captioner, Ranks(device=device)).load(0).micro_batches[0]
        num_bytes.append(sum(value.nbytes for value in captioner.llm.model.layers.parameters()))
    batch = batch.to(device)
    for name, value in captioner.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    unmerged = captioner.logits(batch).detach()
    finish_stage(captioner)
    merged = captioner.logits(batch)
    difference = float((merged - unmerged).abs().max() / unmerged.abs().max())
    share = num_bytes[1] / num_bytes[0]
    measured(f"losses differ by {largest:.1e}, {share:.2f} of the bytes, merged logits by {difference:.1e}")
    assert 0 < largest < 0.2 and difference < 1e-3 and share < 0.3
