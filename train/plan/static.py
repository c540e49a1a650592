"""Memory that stays for the length of a stage: weights, gradients and optimiser, by each engine's own rules.

torch: fp32 weights and gradients on every rank; DDP keeps a second copy of the gradients in its buckets.
DeepSpeed (train/engines/deepspeed.py): stage 0 is the same without buckets. From stage 1 on, `bf16` turns
weights and gradients to bf16 and keeps fp32 masters; stage 1 shards masters and Adam's moments over the
ranks, stage 2 the gradients too, stage 3 the weights too (ZeRO, arXiv 1910.02054).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prismcap.configs.schema.stage import Precision, StageConfig
from prismcap.model.captioner import Captioner
from prismcap.train.optim import parameter_groups

FP32_BYTES, BF16_BYTES = 4, 2
MOMENTS = 2  # AdamW keeps two numbers for each weight, and a step counter for each tensor
# DeepSpeed aligns a flat group to this many elements for each rank (its nccl_start_alignment_factor)
ALIGNMENT = 2
# what ZeRO-3 may hold whole at a time by default: stage3_max_live_parameters
LIVE_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Sharding:
    """An engine as far as memory goes. zero_stage is None for the torch engine."""

    zero_stage: Literal[0, 1, 2, 3] | None
    num_gpus: int = 1
    offload_optimizer: bool = False
    bucket_size: int = 200_000_000

    @property
    def name(self) -> str:
        return "torch" if self.zero_stage is None else f"ZeRO-{self.zero_stage}"

    def weights_in_bf16(self, precision: Precision) -> bool:
        """As deepspeed.weights_in_bf16 says; the torch engine never does."""
        return precision == "bf16" and (self.zero_stage or 0) > 0


@dataclass(frozen=True)
class Sizes:
    """Numbers of elements. `groups`: of the trained tensors, by optimiser group. `buffers`: of floating-point
    buffers. `other_buffer_bytes`: of all other buffers."""

    groups: tuple[tuple[int, ...], ...]
    frozen: tuple[int, ...]
    buffers: int
    other_buffer_bytes: int

    @property
    def trained(self) -> int:
        return sum(map(sum, self.groups))

    @property
    def total(self) -> int:
        return self.trained + sum(self.frozen)


@dataclass(frozen=True)
class StaticBytes:
    """Of one rank's device; `host` is in CPU memory (offload). `communication`: buckets of the engine, and
    with ZeRO-3 the weights that are whole at a time."""

    weights: int
    gradients: int
    optimizer: int
    communication: int
    host: int = 0


def sizes_of(captioner: Captioner, stage: StageConfig) -> Sizes:
    """Of a captioner that prepare_stage has made ready; one of shapes will do. Tied weights count once."""
    groups = parameter_groups(captioner.named_parameters(), stage.train)
    buffers = list(captioner.buffers())
    return Sizes(
        groups=tuple(tuple(parameter.numel() for parameter in group["params"]) for group in groups),
        frozen=tuple(value.numel() for value in captioner.parameters() if not value.requires_grad),
        buffers=sum(buffer.numel() for buffer in buffers if buffer.is_floating_point()),
        other_buffer_bytes=sum(buffer.nbytes for buffer in buffers if not buffer.is_floating_point()),
    )


def static_bytes(sizes: Sizes, precision: Precision, sharding: Sharding) -> StaticBytes:
    """What one rank keeps from step to step."""
    in_bf16 = sharding.weights_in_bf16(precision)
    width = BF16_BYTES if in_bf16 else FP32_BYTES
    buffers = sizes.buffers * width + sizes.other_buffer_bytes
    counters = sum(map(len, sizes.groups)) * FP32_BYTES
    stage, ranks = sharding.zero_stage or 0, sharding.num_gpus
    if stage == 0:
        ddp = sharding.zero_stage is None and ranks > 1
        return StaticBytes(
            weights=sizes.total * width + buffers,
            gradients=sizes.trained * width,
            optimizer=MOMENTS * sizes.trained * FP32_BYTES + counters,
            communication=sizes.trained * width if ddp else 0,
        )
    bucket = sharding.bucket_size * width
    if stage == 3:
        shard = sum(_part(size, ranks) for group in sizes.groups for size in group)
        frozen = sum(_part(size, ranks) for size in sizes.frozen)
        weights, gradients = (shard + frozen) * width, shard * width
        bucket += min(sizes.total, LIVE_PARAMETERS) * width if ranks > 1 else 0
    else:
        padded = [_aligned(sum(group), ALIGNMENT * ranks) for group in sizes.groups]
        shard = sum(padded) // ranks
        weights = (sum(padded) + sum(sizes.frozen)) * width
        gradients = (sizes.trained if stage == 1 else shard) * width
    # stages 1 and 2 keep masters where weights are fp32 already, too; stage 3 then shares the memory
    masters = 1 if in_bf16 or stage < 3 else 0
    optimizer = (masters + MOMENTS) * shard * FP32_BYTES + len(sizes.groups) * FP32_BYTES
    offloaded = optimizer if sharding.offload_optimizer else 0
    return StaticBytes(weights + buffers, gradients, optimizer - offloaded, bucket, offloaded)


def _part(size: int, ranks: int) -> int:
    return math.ceil(size / ranks)


def _aligned(size: int, step: int) -> int:
    return math.ceil(size / step) * step
