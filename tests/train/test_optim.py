"""Parameter groups and schedules, against values worked out by hand."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prismcap.configs.errors import ConfigError, MissingExtraError
from prismcap.configs.schema.stage import GroupConfig, OptimizerConfig, ScheduleConfig
from prismcap.train.optim import (
    build_optimizer,
    learning_rates,
    lr_factor,
    parameter_groups,
    set_learning_rates,
    state_of_tensors,
    state_tensors,
    total_steps,
)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_encoder = nn.Linear(2, 2)
        self.connector = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.llm = nn.Embedding(3, 2)


TRAIN = {
    "connector": GroupConfig(lr=1e-2, weight_decay=0.1),
    "llm": GroupConfig(lr=1e-3, weight_decay=0.2),
}


def test_groups_have_their_own_lr_and_only_matrices_decay() -> None:
    model = Parts()
    model.vision_encoder.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), TRAIN)
    found = {
        name: (group["name"], group["lr"], group["weight_decay"])
        for group in groups
        for name in group["parameter_names"]
    }
    assert found == {
        "connector.0.weight": ("connector", 1e-2, 0.1),
        "connector.0.bias": ("connector", 1e-2, 0.0),
        "connector.1.weight": ("connector", 1e-2, 0.0),
        "connector.1.bias": ("connector", 1e-2, 0.0),
        "llm.weight": ("llm", 1e-3, 0.2),
    }
    assert len({id(parameter) for group in groups for parameter in group["params"]}) == len(found)


def test_decay_moves_the_weights_as_configured() -> None:
    # with no gradient, AdamW multiplies by 1 - lr * decay and does nothing else
    model = Parts()
    model.vision_encoder.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(parameter_groups(model.named_parameters(), TRAIN), OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rates(optimizer, 0.5)
    assert learning_rates(optimizer) == {"connector": 0.5e-2, "llm": 0.5e-3}
    optimizer.step()
    for name, value in model.named_parameters():
        decay = {"connector.0.weight": 0.5e-2 * 0.1, "llm.weight": 0.5e-3 * 0.2}.get(name, 0.0)
        torch.testing.assert_close(value.detach(), before[name] * (1 - decay))


def test_a_group_without_parameters_and_one_that_should_not_train_are_errors() -> None:
    model = Parts()
    model.llm.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"train\.llm: .*no parameter"):
        parameter_groups(model.named_parameters(), TRAIN)
    model.llm.requires_grad_(True)
    with pytest.raises(ConfigError, match="vision_encoder is not in train"):
        parameter_groups(model.named_parameters(), TRAIN)


@pytest.mark.parametrize(
    ("name", "minimum", "expected"),
    [
        # ten steps, two of them warm-up; then 8 steps from 1 towards the minimum
        ("constant", 0.0, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("linear", 0.5, [0.5, 1, 1, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625]),
        # (1 + cos(pi k / 8)) / 2
        (
            "cosine",
            0.0,
            [0.5, 1, 1, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602],
        ),
    ],
)
def test_schedule_values(name: str, minimum: float, expected: list[float]) -> None:
    schedule = ScheduleConfig(name=name, warmup_ratio=0.2, min_lr_ratio=minimum, max_steps=10)
    assert [lr_factor(schedule, step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-7)


def test_schedule_edges() -> None:
    one = ScheduleConfig(warmup_ratio=0.0, max_steps=1)
    assert lr_factor(one, 0, 1) == 1.0
    short = ScheduleConfig(warmup_ratio=0.9, max_steps=1)
    assert lr_factor(short, 0, 1) == 1.0
    past = ScheduleConfig(name="linear", min_lr_ratio=0.25, warmup_ratio=0.0, max_steps=4)
    assert lr_factor(past, 9, 4) == 0.25


def lavis_lr(step: int, total: int, warmup: int, lr: float, min_lr: float, warmup_lr: float) -> float:
    """linear_warmup_cosine_lr of MiniGPT-4 (minigpt4/common/optims.py), from its equations."""
    if step < warmup:
        return min(lr, warmup_lr + (lr - warmup_lr) * step / warmup)
    return (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * step / total)) + min_lr


# steps, warm-up, lr, min_lr, warmup_lr of its two stages (train_configs/minigpt4_stage{1,2}_*.yaml)
MINIGPT4 = [(20_000, 5_000, 1e-4, 8e-5, 1e-6), (1_000, 200, 3e-5, 1e-5, 1e-6)]


@pytest.mark.parametrize(("total", "warmup", "lr", "min_lr", "warmup_lr"), MINIGPT4)
def test_warmup_is_that_of_lavis_and_the_cosine_starts_after_it(
    total: int, warmup: int, lr: float, min_lr: float, warmup_lr: float
) -> None:
    ratios = {"warmup_start_ratio": warmup_lr / lr, "min_lr_ratio": min_lr / lr, "max_steps": total}
    schedule = ScheduleConfig(warmup_steps=warmup, **ratios)
    found = [lr * lr_factor(schedule, step, total) for step in range(total)]
    assert found[0] == pytest.approx(warmup_lr, rel=1e-12)
    warming = [lavis_lr(step, total, warmup, lr, min_lr, warmup_lr) for step in range(warmup)]
    assert found[:warmup] == pytest.approx(warming, rel=1e-12)
    assert found[warmup] == lr
    # what differs: their cosine counts from step 0 of the run, ours from the end of the warm-up
    rest = [lavis_lr(step, total - warmup, 0, lr, min_lr, 0) for step in range(total - warmup)]
    assert found[warmup:] == pytest.approx(rest, rel=1e-12)
    theirs = [lavis_lr(step, total, warmup, lr, min_lr, warmup_lr) for step in range(total)]
    gap = max(abs(a - b) for a, b in zip(found, theirs, strict=True))
    assert 0.15 * (lr - min_lr) < gap < 0.26 * (lr - min_lr)
    # and without a warm-up there is no difference
    bare = ScheduleConfig(warmup_steps=0, **ratios)
    whole = [lavis_lr(step, total, 0, lr, min_lr, 0) for step in range(total)]
    assert [lr * lr_factor(bare, step, total) for step in range(total)] == pytest.approx(whole, rel=1e-12)


def test_warmup_in_steps_counts_as_the_share_does() -> None:
    steps = ScheduleConfig(name="constant", warmup_steps=4, max_steps=20)
    share = ScheduleConfig(name="constant", warmup_ratio=0.2, max_steps=20)
    values = [lr_factor(steps, step, 20) for step in range(20)]
    assert values == [lr_factor(share, step, 20) for step in range(20)]
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [lr_factor(steps, step, 3) for step in range(3)] == [0.25, 0.5, 0.75], "a shorter stage ends in it"
    flat = ScheduleConfig(warmup_start_ratio=1.0, warmup_steps=3, max_steps=9)
    assert [lr_factor(flat, step, 9) for step in range(4)] == [1.0] * 4


def test_a_warmup_has_one_length() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps=5 and warmup_ratio=0.1.*give one of them"):
        ScheduleConfig(warmup_steps=5, warmup_ratio=0.1, max_steps=9)
    # what the resolved config of a run says must load again
    again = ScheduleConfig(warmup_steps=5, max_steps=9)
    assert ScheduleConfig.model_validate(again.model_dump()) == again


def test_total_steps_counts_the_last_part_of_an_epoch_once() -> None:
    assert total_steps(ScheduleConfig(max_steps=7), 100, 8) == 7
    assert total_steps(ScheduleConfig(epochs=1), 100, 8) == 13
    assert total_steps(ScheduleConfig(epochs=2), 100, 8) == 25


EIGHT_BIT = OptimizerConfig(name="adamw_8bit", betas=(0.8, 0.95), eps=1e-6)


def gpu_groups() -> list[dict[str, Any]]:
    """Parameter groups that lie on a GPU, where there is none."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return [{"name": "llm", "params": [nn.Parameter(torch.empty(2, 2, device="cuda"))]}]


def test_8bit_adamw_is_refused_on_a_cpu_and_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"adamw_8bit runs on a GPU, the weights are on cpu: take adamw"):
        build_optimizer([{"params": [nn.Parameter(torch.zeros(2))]}], EIGHT_BIT)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"bitsandbytes.*\[gpu\]"):
        build_optimizer(gpu_groups(), EIGHT_BIT)


def test_8bit_adamw_is_handed_what_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in: the package itself runs on a GPU only."""
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = lambda groups, **options: (groups, options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    groups = gpu_groups()
    found: Any = build_optimizer(groups, EIGHT_BIT)
    assert found == (groups, {"betas": (0.8, 0.95), "eps": 1e-6})


def test_the_state_of_any_optimizer_goes_to_tensors_and_back() -> None:
    # torch counts steps in a float tensor, bitsandbytes in an integer that must stay one
    state = {"step": 7, "state1": torch.arange(4, dtype=torch.uint8), "absmax1": torch.tensor([0.5])}
    tensors = state_tensors(state)
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    back = state_of_tensors(tensors, torch.device("cpu"))
    assert back["step"] == 7 and isinstance(back["step"], int)
    assert torch.equal(back["state1"], state["state1"]) and back["state1"].dtype == torch.uint8
    own = state_of_tensors(state_tensors({"step": torch.tensor(3.0)}), torch.device("cpu"))
    assert torch.equal(own["step"], torch.tensor(3.0))
