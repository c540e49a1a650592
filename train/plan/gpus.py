"""What a planner must know of a GPU type."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.stage import Precision
from prismcap.train.device_rate import GPU_PEAKS, gpu_peak, published_rate

# The share of the peak rate that training keeps, in operations that the model needs (`model` of
# train/flops.py: what is recomputed, padding and other logits do not count). Fitted on the one published
# time of this kind of training, LLaVA-1.5-7B's 3.5 h + 10 h on 8 x A100-80G;
# tests/train/plan/test_duration.py repeats the fit, and tests it on 13B's 6 h + 20 h.
A100_MFU = 0.263
# of a GPU's memory: the rest is for the CUDA context, NCCL's buffers and what the allocator cannot use
USABLE_SHARE = 0.92


@dataclass(frozen=True)
class Gpu:
    """name: type and memory, as A100-80G."""

    name: str
    memory_bytes: int

    @property
    def usable_bytes(self) -> float:
        return self.memory_bytes * USABLE_SHARE

    @property
    def mfu(self) -> float:
        """A100's for every type: of no other is a time of this kind of training published."""
        return A100_MFU

    @property
    def mfu_source(self) -> str:
        fitted = "fitted on LLaVA-1.5-7B's published 3.5 h + 10 h on 8 x A100-80G"
        return fitted if self.name.upper().startswith("A100") else f"{fitted}; unknown for this type"

    @property
    def fastest_precision(self) -> Precision:
        """What `precision: auto` comes to on it."""
        return "fp32" if published_rate(self.name, "bf16") is None else "bf16"

    def flops_per_s(self, precision: Precision) -> float:
        """Published peak. Raises ConfigError where the type has no units for the precision."""
        rate = published_rate(self.name, precision, tf32=True)
        if rate is None:
            raise ConfigError(f"--gpu {self.name} has no {precision} units: set stages.*.precision=fp32")
        return rate


def find_gpu(name: str) -> Gpu:
    """Raises ConfigError for a type without a published rate, or without its memory in the name."""
    memory = re.search(r"[- ](\d+)G(B|iB)?$", name, re.IGNORECASE)
    if memory is None or gpu_peak(name) is None:
        known = ", ".join(dict.fromkeys(peak.name for peak in GPU_PEAKS))
        raise ConfigError(
            f"--gpu {name}: expected a type and its memory, as A100-80G. Types with a published rate: {known}"
        )
    return Gpu(name, int(memory.group(1)) * 2**30)
