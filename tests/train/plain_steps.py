"""Steps of the tiny run in one plain process, and when others are equal to them.

Tolerances, fp32 sums taken in another order: losses 2e-6, gradient norms 1e-5, each weight tensor 2e-5
of its norm. AdamW's eps is 1e-3 here: with the default a gradient that is zero but for rounding (the
bias of a key) moves its weight by a whole lr in a direction that rounding decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prismcap.configs.load import load_config
from prismcap.model.build import build_captioner
from prismcap.model.trainable import prepare_stage
from prismcap.train.distributed import Ranks
from prismcap.train.run import build_engine, stage_loader

TRAIN = "{connector: {lr: 0.005}, llm: {lr: 0.01, weight_decay: 0.1}, vision_encoder: {lr: 0.01}}"
# some steps are clipped and some are not
CLIP = "stages.instruct.optimizer.clip_norm=5.0"
FULL = (f"stages.instruct.train={TRAIN}", "stages.instruct.optimizer.eps=1e-3", CLIP)
STEPS = 5


def run_plain(
    world: Path, *overrides: str
) -> tuple[list[float], list[float], dict[str, Tensor], list[float]]:
    config = load_config(world / "config.yaml", [*FULL, *overrides])
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages["instruct"].train, seed=config.seed)
    engine = build_engine(config, "instruct", captioner, STEPS, Ranks())
    loader = stage_loader(config, "instruct", captioner, Ranks())
    results = [engine.train_step(loader.load(step).micro_batches) for step in range(STEPS)]
    return (
        [result.loss for result in results],
        [result.grad_norm for result in results],
        engine.gathered_state(),
        [result.accuracy for result in results],
    )


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of a weight tensor, as a share of its norm."""
    assert first.keys() == second.keys()
    return max(
        float((first[name] - second[name]).norm() / first[name].norm().clamp(min=0.1)) for name in first
    )


def equal(first: Any, second: Any) -> bool:
    losses, norms, weights, accuracies = first
    return bool(
        losses == pytest.approx(second[0], rel=2e-6)
        and norms == pytest.approx(second[1], rel=1e-5)
        and accuracies == pytest.approx(second[3])
        and distance(second[2], weights) < 2e-5
    )
