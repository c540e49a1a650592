"""What the fit loop asks of an engine; the rest of a step belongs to the engine alone.

An engine module has `Options` and
`build(options, captioner, stage, total_steps, ranks) -> Engine`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from prismcap.data.schema import Batch


class BadStepError(RuntimeError):
    """A step that must not reach the weights. Weights, optimiser and step number are as before it.

    `sample_ids` are the samples of the micro-batches it came from, as far as that is known.
    """

    def __init__(self, what: str, sample_ids: Sequence[str]) -> None:
        super().__init__(what)
        self.what = what
        self.sample_ids = tuple(sample_ids)


class NonFiniteError(BadStepError):
    """The loss or the gradient is not finite."""


class LossSpikeError(BadStepError):
    """The loss is above what the step was allowed."""


@dataclass(frozen=True)
class StepResult:
    """loss: mean over all supervised tokens of all ranks and micro-batches. accuracy: the share of them that
    is the likeliest token at its place. grad_norm: before clipping.

    skipped: no optimiser step was made, for `reason`; `sample_ids` are those at fault, of all ranks, where
    they are known.
    """

    loss: float
    grad_norm: float
    num_target_tokens: int
    accuracy: float
    skipped: bool = False
    reason: str = ""
    sample_ids: tuple[str, ...] = ()


class Engine(Protocol):
    """Owns the optimiser and the schedule of one stage."""

    step: int  # steps made so far, skipped ones included; the schedule follows it
    fixed_world_size: bool  # a saved state can only be loaded by as many ranks as wrote it

    def train_step(self, micro_batches: Sequence[Batch], max_loss: float = math.inf) -> StepResult:
        """One optimiser step over this rank's micro-batches (none is allowed). Collective.

        Raises BadStepError, on every rank: NonFiniteError, or LossSpikeError for a loss above `max_loss`.
        """

    def advance(self) -> None:
        """Count a step, and let the schedule follow. train_step does it; where it raised, who skips does."""

    def learning_rates(self) -> dict[str, float]:
        """The next step's lr by parameter group."""

    def gathered_state(self) -> dict[str, Tensor]:
        """Weights of what trains, whole, on the CPU of rank 0 (empty elsewhere). Collective."""

    def eval_context(self) -> AbstractContextManager[None]:
        """Eval mode with whole parameters for forward and generation. Collective."""

    def save(self, folder: Path) -> None:
        """Weights, optimiser and step number of every rank, into an existing folder. Collective."""

    def load(self, folder: Path) -> None:
        """The reverse of save. Collective."""

    def close(self) -> None:
        """Let go of the captioner and of device memory. The captioner is not used any more after it."""
