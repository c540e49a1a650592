"""Plain PyTorch: one process, or DistributedDataParallel under torchrun. AdamW state on every rank."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.schema import Batch, DataError
from prismcap.model.captioner import Captioner
from prismcap.model.precision import autocast
from prismcap.model.trainable import load_trainable_state, trainable_state
from prismcap.model.weights import load_weights, save_weights
from prismcap.train.distributed import Ranks
from prismcap.train.encode_ahead import with_features
from prismcap.train.engines._contract import StepResult
from prismcap.train.files import write_json
from prismcap.train.optim import (
    build_optimizer,
    learning_rates,
    lr_factor,
    parameter_groups,
    set_learning_rates,
    state_of_tensors,
    state_tensors,
)
from prismcap.train.step import accuracy, agree, check_gradient, checked_loss, without_target

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STEP = "engine.json"


class Options(Section):
    """No options: the stage says it all."""


def build(
    options: Options,  # noqa: ARG001
    captioner: Captioner,
    stage: StageConfig,
    total_steps: int,
    ranks: Ranks,
) -> TorchEngine:
    return TorchEngine(captioner, stage, total_steps, ranks)


def undo_averaging(ranks: Ranks) -> int:
    """DDP divides the summed gradients by the number of ranks; the loss is scaled up by as much."""
    return ranks.world_size


class TorchEngine:
    """Weights that train stay fp32; with `precision: bf16` the forward pass runs under autocast."""

    fixed_world_size = False

    def __init__(self, captioner: Captioner, stage: StageConfig, total_steps: int, ranks: Ranks) -> None:
        self.step = 0
        self.captioner = captioner.to(ranks.device)
        self.stage = stage
        self.total_steps = total_steps
        self.ranks = ranks
        groups = parameter_groups(captioner.named_parameters(), stage.train)
        self.names = [name for group in groups for name in group["parameter_names"]]
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = build_optimizer(groups, stage.optimizer)
        self.forward: Any = self.captioner
        if ranks.world_size > 1:
            # every rank runs the same modules in every micro-batch, so no parameter is ever unused
            self.forward = DistributedDataParallel(
                self.captioner,
                device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
                broadcast_buffers=False,
            )
        self._set_lr()

    def _set_lr(self) -> None:
        set_learning_rates(self.optimizer, lr_factor(self.stage.schedule, self.step, self.total_steps))

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.ranks.device, self.stage.precision)

    def train_step(self, micro_batches: Sequence[Batch], max_loss: float = math.inf) -> StepResult:
        step = agree(micro_batches, self.ranks)
        if step.num_target_tokens == 0:
            self.advance()
            return without_target()
        self.captioner.train()
        with self._autocast():
            step = with_features(step, self.captioner, self.ranks.device)
        scale = undo_averaging(self.ranks) / step.num_target_tokens
        loss_sums, correct = [], []
        for i, batch in enumerate(step.micro_batches):
            last = i == len(step.micro_batches) - 1
            with nullcontext() if last or self.ranks.world_size == 1 else self.forward.no_sync():
                with self._autocast():
                    output = self.forward(batch.to(self.ranks.device, non_blocking=True))
                (output.loss_sum * scale).backward()
            loss_sums.append(output.loss_sum.detach())
            correct.append(output.num_correct)
        try:
            loss = checked_loss(step, loss_sums, self.ranks, max_loss)
            share = accuracy(step, [int(value) for value in correct], self.ranks)
            self._check_all_are_read()
            grad_norm = self._clip()
            check_gradient(step, grad_norm, self.ranks)
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        self.advance()
        return StepResult(loss, grad_norm, step.num_target_tokens, share)

    def _check_all_are_read(self) -> None:
        """What never had a gradient has no optimiser state: no checkpoint of it could be loaded."""
        unread = [
            name
            for name, parameter in zip(self.names, self.parameters, strict=True)
            if parameter.grad is None and parameter not in self.optimizer.state
        ]
        if unread:
            raise ConfigError(
                f"{len(unread)} parameters are to train, but the model does not read them "
                f"({', '.join(unread[:3])}{', …' if len(unread) > 3 else ''}). "
                "A vision encoder must name such parameters in unused_parameters(); other components "
                "must not have them."
            )

    def _clip(self) -> float:
        limit = self.stage.optimizer.clip_norm
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, limit if limit > 0 else math.inf))

    def advance(self) -> None:
        self.step += 1
        self._set_lr()

    def learning_rates(self) -> dict[str, float]:
        return learning_rates(self.optimizer)

    def gathered_state(self) -> dict[str, Tensor]:
        if not self.ranks.is_first:
            return {}
        return {name: value.detach().cpu() for name, value in trainable_state(self.captioner).items()}

    @contextmanager
    def eval_context(self) -> Iterator[None]:
        self.captioner.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self.captioner.train()

    def save(self, folder: Path) -> None:
        if not self.ranks.is_first:  # every rank holds the same state
            return
        save_weights(folder / WEIGHTS, trainable_state(self.captioner))
        tensors = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in state_tensors(self.optimizer.state.get(parameter, {})).items():
                tensors[f"{name}/{key}"] = value
        save_weights(folder / OPTIMIZER, tensors)
        write_json(folder / STEP, {"step": self.step})

    def load(self, folder: Path) -> None:
        load_trainable_state(self.captioner, load_weights(folder / WEIGHTS))
        states: dict[str, dict[str, Tensor]] = {}
        for key, value in load_weights(folder / OPTIMIZER).items():
            name, _, part = key.rpartition("/")
            states.setdefault(name, {})[part] = value
        if states and set(states) != set(self.names):
            raise DataError(
                f"{folder / OPTIMIZER}: the state is of other parameters than those that train now; "
                f"only in one of both: {sorted(set(states) ^ set(self.names))[:5]}"
            )
        self.optimizer.state.clear()  # a file of before the first step holds none
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if name in states:
                # the fused kernel wants its step counter on the device too
                self.optimizer.state[parameter] = state_of_tensors(states[name], self.ranks.device)
        self.step = int(json.loads((folder / STEP).read_text(encoding="utf-8"))["step"])
        self._set_lr()

    def close(self) -> None:
        self.forward = None
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
