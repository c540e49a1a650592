"""AdamW over the parameter groups of a stage, and its learning rate as a function of the step.

The schedule keeps no state of its own: the lr of step k is a pure function of k, so a resumed run
needs nothing but its step number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prismcap.configs.errors import ConfigError, MissingExtraError
from prismcap.configs.schema.stage import Group, GroupConfig, OptimizerConfig, ScheduleConfig
from prismcap.model.trainable import group_of
from prismcap.train.layer_depth import layers_below_top


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], train: Mapping[Group, GroupConfig]
) -> list[dict[str, Any]]:
    """Optimiser groups of what trains: per group one with weight decay and one without, and with
    `layer_lr_decay` such a pair for each layer.

    1-D parameters (biases, norms, scales) are not decayed: pulling a norm's scale to zero
    regularises nothing. Each dict has `name` (the group), `params`, `parameter_names`, `lr`,
    `initial_lr` and `weight_decay`. Raises ConfigError when a group of `train` has no parameter, or no layers
    for `layer_lr_decay`.
    """
    parameters = dict(named_parameters)
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    for group in train:
        if not any(group_of(name) == group for name in trained):
            raise ConfigError(f"train.{group}: this part of the model has no parameter to train")
    scales = _layer_scales(list(parameters), trained, train)
    parts: dict[tuple[Group, bool, float], list[str]] = {}
    for name in trained:
        key = (group_of(name), parameters[name].ndim > 1, scales.get(name, 1.0))
        parts.setdefault(key, []).append(name)
    groups = []
    for (group, decays, scale), names in parts.items():
        if group not in train:
            raise ConfigError(f"{names[0]} requires a gradient, but {group} is not in train")
        groups.append(
            {
                "name": group,
                "params": [parameters[name] for name in names],
                "parameter_names": names,
                "lr": train[group].lr * scale,
                "initial_lr": train[group].lr * scale,
                "weight_decay": train[group].weight_decay if decays else 0.0,
            }
        )
    return groups


def _layer_scales(
    names: Sequence[str], trained: Sequence[str], train: Mapping[Group, GroupConfig]
) -> dict[str, float]:
    """What the lr of a parameter is of its group's, for groups with layer_lr_decay."""
    scales: dict[str, float] = {}
    for group, config in train.items():
        if config.layer_lr_decay is None:
            continue
        own = [name for name in names if group_of(name) == group]
        tops = [name for name in trained if group_of(name) == group]
        below = layers_below_top(own, tops, f"train.{group}.layer_lr_decay")
        scales |= {name: config.layer_lr_decay ** below[name] for name in tops}
    return scales


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW in its fused form (CPU and CUDA): one pass over the memory in place of about ten; or in 8 bits.

    8 bits: both moments as one byte per weight with a scale per block (arXiv 2110.02861); tensors of fewer
    than 4,096 elements keep theirs in fp32. Raises ConfigError on a CPU, MissingExtraError without
    bitsandbytes.
    """
    if config.name == "adamw":
        return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    device = groups[0]["params"][0].device
    if device.type != "cuda":
        raise ConfigError(
            f"optimizer.name: adamw_8bit runs on a GPU, the weights are on {device}: take adamw, or train "
            "where torch.cuda.is_available()"
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "gpu", "optimizer.name: adamw_8bit") from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=config.betas, eps=config.eps)
    return optimizer


def state_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The optimiser's state of one parameter as tensors: integers (a step counter) become long scalars."""
    return {key: value if isinstance(value, Tensor) else torch.tensor(value) for key, value in state.items()}


def state_of_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """The reverse of state_tensors, on `device`."""
    return {
        key: int(value) if value.ndim == 0 and value.dtype == torch.long else value.to(device)
        for key, value in tensors.items()
    }


def warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """The steps in which the lr rises linearly: as many as asked for, or a part of the run, rounded up."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return math.ceil(schedule.warmup_ratio * total_steps)


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """What the configured lr is multiplied by in step `step` (from 0).

    Warm-up over w steps goes 1/w, 2/w … 1, or, from `warmup_start_ratio` r > 0, r + (1 - r) * step / w: the
    first step has r, and 1 is reached in the step after the last one. Then the chosen curve falls from 1
    towards `min_lr_ratio`, which it would reach in step `total_steps`.

    The warm-up from r is that of LAVIS's linear_warmup_cosine_lr (lavis/common/optims.py), number for number.
    Two things differ. LAVIS warms up in its first epoch alone and knows later steps by their epoch; its copy
    in MiniGPT-4 (minigpt4/common/optims.py), like this, counts steps over epochs. And the cosine of both
    counts from the first step of the run, so it drops where the warm-up ends and stays below this one, which
    starts there (in MiniGPT-4's stage 1 by up to a quarter of the way from lr to its minimum).
    """
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        start = schedule.warmup_start_ratio
        return start + (1.0 - start) * step / warmup if start else (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if schedule.name == "constant":
        return 1.0
    fall = progress if schedule.name == "linear" else (1.0 - math.cos(math.pi * progress)) / 2
    return 1.0 - (1.0 - schedule.min_lr_ratio) * fall


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's configured lr."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The lr by group name: with layer_lr_decay that of the highest layer, which is the one configured."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        name = str(group["name"])
        rates[name] = max(rates.get(name, 0.0), float(group["lr"]))
    return rates


def total_steps(schedule: ScheduleConfig, num_samples: int, samples_per_step: int) -> int:
    """The length of a stage in optimiser steps. Epochs follow one another without a gap, so only the
    last step may reach past its epoch."""
    if schedule.max_steps is not None:
        return schedule.max_steps
    assert schedule.epochs is not None
    return math.ceil(schedule.epochs * num_samples / samples_per_step)
