"""Memory that stays for the length of a stage: weights, gradients and optimiser, by each engine's own rules.

torch: fp32 weights and gradients on every rank, in `bf16` matrices of groups that do not train in bf16
(model/frozen.py); DDP keeps a second copy of the gradients in its buckets.
DeepSpeed (train/engines/deepspeed.py): stage 0 is the same without buckets. From stage 1 on, `bf16` turns
weights and gradients to bf16 and keeps fp32 masters; stage 1 shards masters and Adam's moments over the
ranks, stage 2 the gradients too, stage 3 the weights too (ZeRO, arXiv 1910.02054).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from prismcap.configs.schema.stage import Precision, StageConfig
from prismcap.model.captioner import Captioner
from prismcap.model.frozen import held_weights
from prismcap.model.lora import output_layer
from prismcap.model.quantize import NF4_BITS, quantizable
from prismcap.train.optim import parameter_groups

FP32_BYTES, BF16_BYTES = 4, 2
MOMENTS = 2  # AdamW keeps two numbers for each weight
# bitsandbytes' AdamW8bit: a byte each, and an fp32 scale for each block; smaller tensors stay in fp32
BLOCK_8BIT, SMALLEST_8BIT = 256, 4096
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
        """As deepspeed.weights_in_bf16 says; the torch engine never does. Raises ValueError for auto."""
        if precision == "auto":
            raise ValueError("precision: auto must be settled before memory is counted (train/precision.py)")
        return precision == "bf16" and (self.zero_stage or 0) > 0


@dataclass(frozen=True)
class Sizes:
    """Numbers of elements. `groups`: of the trained tensors, by optimiser group, in order. `frozen`: of the
    others, but for those that are quantized to nf4. `held`: how many of these are held in bf16."""

    groups: tuple[tuple[int, ...], ...]
    frozen: tuple[int, ...]
    buffer_bytes: int
    quantized: int = 0
    held: int = 0

    @property
    def trained(self) -> int:
        return sum(map(sum, self.groups))

    @property
    def total(self) -> int:
        return self.trained + sum(self.frozen) + self.quantized

    @property
    def quantized_bytes(self) -> int:
        return math.ceil(self.quantized * NF4_BITS / 8)


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
    quantized = _quantized(captioner, stage)
    frozen = [value for value in captioner.parameters() if not value.requires_grad]
    return Sizes(
        groups=tuple(tuple(parameter.numel() for parameter in group["params"]) for group in groups),
        frozen=tuple(value.numel() for value in frozen if id(value) not in quantized),
        buffer_bytes=sum(buffer.nbytes for buffer in captioner.buffers()),
        quantized=sum(value.numel() for value in frozen if id(value) in quantized),
        held=sum(value.numel() for value in held_weights(captioner)),
    )


def _quantized(captioner: Captioner, stage: StageConfig) -> set[int]:
    """The ids of the weights that are in nf4 where a captioner is more than shapes."""
    config = stage.train.get("llm")
    if config is None or config.lora is None or config.lora.quantize is None:
        return set()
    layers = quantizable(captioner.llm, output_layer(captioner.llm))
    return {id(layer.weight) for layer in layers.values()}


def static_bytes(sizes: Sizes, stage: StageConfig, sharding: Sharding) -> StaticBytes:
    """What one rank keeps from step to step."""
    precision, optimizer_name = stage.precision, stage.optimizer.name
    in_bf16 = sharding.weights_in_bf16(precision)
    width = BF16_BYTES if in_bf16 else FP32_BYTES
    zero, ranks = sharding.zero_stage or 0, sharding.num_gpus
    if zero == 0:
        ddp = sharding.zero_stage is None and ranks > 1
        weights = (sizes.total - sizes.quantized) * width + sizes.quantized_bytes + sizes.buffer_bytes
        if precision == "bf16":
            weights -= sizes.held * (FP32_BYTES - BF16_BYTES)
        return StaticBytes(
            weights=weights,
            gradients=sizes.trained * width,
            optimizer=sum(_state(size, optimizer_name) for group in sizes.groups for size in group),
            communication=sizes.trained * width if ddp else 0,
        )
    bucket = sharding.bucket_size * width
    if zero == 3:
        shards = [sum(_part(size, ranks) for size in group) for group in sizes.groups]
        frozen = sum(_part(size, ranks) for size in sizes.frozen)
        weights, gradients = sum(shards) + frozen, sum(shards)
        bucket += min(sizes.total, LIVE_PARAMETERS) * width if ranks > 1 else 0
    else:
        padded = [_aligned(sum(group), ALIGNMENT * ranks) for group in sizes.groups]
        shards = [size // ranks for size in padded]
        weights = sum(padded) + sum(sizes.frozen)
        gradients = sizes.trained if zero == 1 else sum(map(_held_whole, sizes.groups, shards))
    # masters are kept where weights are fp32 already, too
    optimizer = sum(shard * FP32_BYTES + _state(shard, optimizer_name) for shard in shards)
    offloaded = optimizer if sharding.offload_optimizer else 0
    weights = weights * width + sizes.quantized_bytes + sizes.buffer_bytes
    return StaticBytes(weights, gradients * width, optimizer - offloaded, bucket, offloaded)


def _state(size: int, optimizer: str) -> int:
    """Bytes of AdamW's state for a tensor of `size` weights: two moments, and a step counter in fp32."""
    if optimizer == "adamw_8bit" and size >= SMALLEST_8BIT:
        return MOMENTS * (size + math.ceil(size / BLOCK_8BIT) * FP32_BYTES)
    return MOMENTS * size * FP32_BYTES + FP32_BYTES


def _held_whole(group: tuple[int, ...], shard: int) -> int:
    """Elements of the gradients that a rank of ZeRO-2 keeps of a group, on the rank that keeps most: every
    tensor whole of which a part is the rank's."""
    held: Counter[int] = Counter()
    start = 0
    for size in group:
        for rank in range(start // shard, (start + size - 1) // shard + 1):
            held[rank] += size
        start += size
    return max(held.values())


def _part(size: int, ranks: int) -> int:
    return math.ceil(size / ranks)


def _aligned(size: int, step: int) -> int:
    return math.ceil(size / step) * step
