"""(b): how fast this device multiplies matrices of the model's own shapes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prismcap.model.build import build_captioner
from prismcap.train.bench.cases import TrainCase, model_config
from prismcap.train.bench.job import Figures
from prismcap.train.device_rate import matrix_shapes, measured_rate
from prismcap.train.distributed import pick_device

_BUDGET_S = 2.0


class RatesJob:
    """Products of the LLM's layers over as many positions as one packed row has."""

    def __init__(self, case: TrainCase) -> None:
        captioner = build_captioner(model_config(case.size, case.visual_tokens), seed=case.seed)
        self.shapes = matrix_shapes(captioner, case.rows_per_micro_batch * case.row_tokens)
        self.dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        self.device = pick_device()

    def run(self, step: int) -> Figures:  # noqa: ARG002 - every step is the same
        """The rate now: it is measured in turn with the contenders."""
        rate = measured_rate(self.shapes, self.dtype, self.device, _BUDGET_S)
        return {"flops_per_s": rate, "device": device_name(self.device)}


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpus = Path("/proc/cpuinfo")
    for line in cpus.read_text().splitlines() if cpus.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def build(spec: Mapping[str, Any]) -> RatesJob:
    """The job of {"case": …}."""
    case = TrainCase.model_validate(spec["case"])
    torch.set_num_threads(case.num_threads)
    return RatesJob(case)
