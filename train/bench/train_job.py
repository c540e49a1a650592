"""The child's side of `bench train`: one contender, one case."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from prismcap.train.bench import memory
from prismcap.train.bench.cases import TrainCase
from prismcap.train.bench.contender import Contender
from prismcap.train.bench.job import Figures
from prismcap.train.bench.samples import all_samples, features_of
from prismcap.train.distributed import pick_device

# shapes of a step differ from those of the last one; after so many tries its time is taken as it is
_MOST_TRIES = 4


class TrainJob:
    """Optimiser steps of one contender, each timed from samples to updated weights."""

    def __init__(self, case: TrainCase, contender: Contender, device: torch.device) -> None:
        self.case, self.contender, self.device = case, contender, device
        self.samples = all_samples(case)
        self.features = features_of(case)
        memory.restart_peak()  # making the weights is not training

    def run(self, step: int) -> Figures:
        """See child.Job. time_s holds batching_s; memory is the peak since set-up.

        A step in which something was compiled is made again, and what it took longer is compile_s; the loss
        is that of the first time.
        """
        tries = [self._try(step)]
        while tries[-1]["compiled"] and len(tries) < _MOST_TRIES:
            tries.append(self._try(step))
        last = tries[-1]
        compile_s = sum(one["time_s"] - last["time_s"] for one in tries[:-1])
        return last | {"loss": tries[0]["loss"], "compile_s": compile_s}

    def _try(self, step: int) -> Figures:
        size = self.case.samples_per_step
        samples = self.samples[step * size : (step + 1) * size]
        self.features.draw(samples)
        graphs = _num_graphs()
        started_s = time.perf_counter()
        figures = self.contender.step(samples, self.features)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        time_s = time.perf_counter() - started_s
        peak_memory_mb = memory.peak_mb()
        flops = self.contender.flops(samples, self.features)
        return {
            **asdict(figures),
            "time_s": time_s,
            "compiled": _num_graphs() > graphs,
            "num_samples": len(samples),
            "num_tokens": sum(len(sample) for sample in samples),
            "num_target_tokens": sum(sample.num_target_tokens for sample in samples),
            "peak_memory_mb": peak_memory_mb,
            "model_flops": flops.total_model,
            "executed_flops": flops.total_executed,
        }


def _num_graphs() -> int:
    """Compiled by torch.compile in this process so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # not there: nothing was
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def build(spec: Mapping[str, Any]) -> TrainJob:
    """The job of {"contender": "ours" | "llava", "case": …} and the contender's own keys."""
    case = TrainCase.model_validate(spec["case"])
    torch.set_num_threads(case.num_threads)
    device = pick_device()
    return TrainJob(case, make_contender(spec, case, device), device)


def make_contender(spec: Mapping[str, Any], case: TrainCase, device: torch.device) -> Contender:
    """The contender that a spec names."""
    if spec["contender"] == "ours":
        from prismcap.train.bench.ours import Ours

        return Ours(case, device, spec["compiled"])
    from prismcap.train.bench.llava import Llava, LlavaOptions

    return Llava(case, device, LlavaOptions(spec["rows"], spec["tuned"], spec["compiled"]))
