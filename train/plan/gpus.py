"""What a planner must know of a GPU type."""

from __future__ import annotations

from dataclasses import dataclass

from prismcap.configs.errors import ConfigError, nearest

# The share of the peak rate that training keeps, counted in the operations that the model needs (recomputed
# ones, padding and full logits do not count). Fitted on the published time of LLaVA-1.5-7B, 3.5 h + 10 h on
# 8 x A100-80G; tests/train/plan/test_duration.py repeats the fit and tests it on 13B's.
FITTED_MFU = 0.28
# of a GPU's memory: the rest is for the CUDA context, NCCL's buffers and what the allocator cannot use
USABLE_SHARE = 0.92


@dataclass(frozen=True)
class Gpu:
    """flops_per_s: dense bf16 with fp32 accumulation, from NVIDIA's data sheets. mfu_source: what mfu is
    fitted on; no other type has a published time of this kind of training, so A100's stands for all."""

    name: str
    memory_bytes: int
    flops_per_s: float
    mfu: float = FITTED_MFU
    mfu_source: str = "as fitted on the A100-80G: nothing is published for this type"

    @property
    def usable_bytes(self) -> float:
        return self.memory_bytes * USABLE_SHARE


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40G", 40 * 2**30, 312e12),
        Gpu("A100-80G", 80 * 2**30, 312e12, mfu_source="fitted on LLaVA-1.5-7B's published 13.5 h on 8"),
        Gpu("H100-80G", 80 * 2**30, 989e12),
        Gpu("H200-141G", 141 * 2**30, 989e12),
        Gpu("L40S-48G", 48 * 2**30, 362e12),
        Gpu("A6000-48G", 48 * 2**30, 155e12),
        Gpu("RTX4090-24G", 24 * 2**30, 165e12),
    )
}


def find_gpu(name: str) -> Gpu:
    """Raises ConfigError listing what is known."""
    if name not in GPUS:
        raise ConfigError(f"--gpu {name}: not a known type.{nearest(name, GPUS)}")
    return GPUS[name]
