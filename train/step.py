"""What every engine does with a step before and after its own backward passes.

The loss of a step is the sum over all micro-batches of all ranks, divided by their supervised
tokens. Both counts are therefore agreed on before the first backward, and ranks with fewer
micro-batches run empty ones, so that each rank runs the same modules equally often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prismcap.data.pack import empty_batch
from prismcap.data.schema import Batch
from prismcap.train.distributed import Ranks
from prismcap.train.engines._contract import LossSpikeError, NonFiniteError, StepResult


@dataclass(frozen=True)
class AgreedStep:
    """This rank's micro-batches, equally many on every rank, and the supervised tokens of all ranks."""

    micro_batches: tuple[Batch, ...]
    num_target_tokens: int


def agree(micro_batches: Sequence[Batch], ranks: Ranks) -> AgreedStep:
    """Count over all ranks and fill up with empty micro-batches. Collective."""
    tokens = ranks.sum([sum(batch.num_target_tokens for batch in micro_batches)])[0]
    rounds = int(ranks.max([len(micro_batches)])[0])
    missing = [_idle_batch() for _ in range(rounds - len(micro_batches))]
    return AgreedStep((*micro_batches, *missing), int(tokens))


def _idle_batch() -> Batch:
    """One token that nothing is asked of. It counts as a sample and not as padding: attention that skips
    padding would leave queries and keys without a gradient, and the other ranks waiting for it."""
    batch = empty_batch(pad_id=0)
    return replace(batch, segment_ids=torch.ones_like(batch.segment_ids))


def checked_loss(
    step: AgreedStep, loss_sums: Sequence[Tensor], ranks: Ranks, max_loss: float = math.inf
) -> float:
    """The loss of the whole step from this rank's sums. Collective.

    Raises NonFiniteError or LossSpikeError, on every rank, naming the samples of the micro-batches at fault.
    """
    loss = mean_loss(step, loss_sums, ranks)
    if loss <= max_loss and math.isfinite(loss):
        return loss
    finite = math.isfinite(loss)
    bad = [
        name
        for batch, loss_sum in zip(step.micro_batches, loss_sums, strict=True)
        if not math.isfinite(loss_sum) or (finite and float(loss_sum) > max_loss * batch.num_target_tokens)
        for name in batch.sample_ids
    ]
    names = _everywhere(bad, ranks)
    if finite:
        raise LossSpikeError(f"the loss is {loss:.4g}, a spike (above {max_loss:.4g})", names)
    raise NonFiniteError("the loss is not finite", names)


def mean_loss(step: AgreedStep, loss_sums: Sequence[Tensor], ranks: Ranks) -> float:
    """Over all supervised tokens of the step; nan where it is not finite on some rank. Collective."""
    values = [float(value) for value in loss_sums]
    own = math.fsum(values) if all(map(math.isfinite, values)) else math.nan
    return ranks.sum([own])[0] / step.num_target_tokens


def kept_or_nan(loss_sum: Tensor) -> Tensor:
    """1, or nan for a loss that is not finite. As a factor of the loss it makes every gradient nan then, also
    where the gradient alone would not show it, without asking the device."""
    value = loss_sum.detach()
    return 1 + (value - value)


def accuracy(step: AgreedStep, num_correct: Sequence[int], ranks: Ranks) -> float:
    """The share of the step's supervised tokens that were the likeliest ones. Collective."""
    return ranks.sum([sum(num_correct)])[0] / step.num_target_tokens


def check_gradient(step: AgreedStep, grad_norm: float, ranks: Ranks) -> None:
    """Raise NonFiniteError, on every rank, when the norm is not finite. `grad_norm` is equal on all ranks."""
    if not math.isfinite(grad_norm):
        names = [name for batch in step.micro_batches for name in batch.sample_ids]
        raise NonFiniteError("the gradient is not finite", _everywhere(names, ranks))


def without_target() -> StepResult:
    """The result of a step that has no supervised token on any rank."""
    reason = "no supervised token in any of its samples"
    return StepResult(0.0, 0.0, num_target_tokens=0, accuracy=0.0, skipped=True, reason=reason)


def _everywhere(names: Sequence[str], ranks: Ranks) -> list[str]:
    return [name for part in ranks.gather(list(names)) for name in part]
