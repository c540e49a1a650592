"""`bench loss`: our loss over supervised positions against cross entropy over all logits.

Shape legend: T positions, N supervised positions, H width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from prismcap.data.schema import IGNORE_INDEX
from prismcap.model.loss import token_loss
from prismcap.model.precision import autocast
from prismcap.train.bench import memory
from prismcap.train.bench.cases import LossCase
from prismcap.train.bench.job import Figures
from prismcap.train.distributed import pick_device


class LossJob:
    """Forward and backward through head and loss, from hidden states that need a gradient."""

    def __init__(self, case: LossCase, way: Literal["ours", "full"]) -> None:
        self.case, self.way = case, way
        self.device = pick_device()
        generator = torch.Generator().manual_seed(case.seed)
        self.head = nn.Linear(case.hidden, case.vocabulary, bias=False)
        with torch.no_grad():
            self.head.weight.normal_(0.0, case.hidden**-0.5, generator=generator)
        self.hidden_TH = torch.randn(case.positions, case.hidden, generator=generator)
        num_targets = max(1, round(case.supervised_share * case.positions))
        chosen_N = torch.randperm(case.positions - 1, generator=generator)[:num_targets].sort().values
        self.next_T = torch.full((case.positions,), IGNORE_INDEX)
        self.next_T[chosen_N] = torch.randint(case.vocabulary, (num_targets,), generator=generator)
        self.head.to(self.device)
        self.hidden_TH = self.hidden_TH.to(self.device).requires_grad_()
        self.next_T = self.next_T.to(self.device)

    def run(self, step: int) -> Figures:  # noqa: ARG002 - every step is the same
        """Loss, the peak above what was held before and the gradients that stay, and the time of a second
        pass, which finds its memory as a step in the middle of a training does."""
        self._forget()
        memory.restart_peak()
        before_mb = memory.current_mb()
        value = self._pass()
        gradients_mb = 4 * (self.head.weight.numel() + self.hidden_TH.numel()) / 1e6
        extra_mb = memory.peak_mb() - before_mb - gradients_mb
        self._forget()
        started_s = time.perf_counter()
        self._pass()
        time_s = time.perf_counter() - started_s
        return {"time_s": time_s, "loss": value, "extra_memory_mb": extra_mb}

    def _forget(self) -> None:
        self.head.weight.grad = self.hidden_TH.grad = None

    def _pass(self) -> float:
        """Forward and backward."""
        with autocast(self.device, self.case.precision):
            loss = self._mean(self.hidden_TH)
        loss.backward()
        return float(loss.detach())

    def _mean(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        if self.way == "full":
            logits_TV = self.head(hidden_TH).float()
            return functional.cross_entropy(logits_TV, self.next_T, ignore_index=IGNORE_INDEX)
        position_N = (self.next_T != IGNORE_INDEX).nonzero().squeeze(1)
        loss_sum, _ = token_loss(hidden_TH[position_N], self.next_T[position_N], self.head)
        return loss_sum / len(position_N)


def build(spec: Mapping[str, Any]) -> LossJob:
    """The job of {"case": …, "way": "ours" | "full"}."""
    case = LossCase.model_validate(spec["case"])
    torch.set_num_threads(case.num_threads)
    return LossJob(case, spec["way"])
