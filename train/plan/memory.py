"""Memory of a stage on one device, part by part, from its config alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prismcap.configs.registry import component_options
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.frozen import hold_frozen
from prismcap.model.shapes import shapes_only
from prismcap.model.trainable import prepare_stage
from prismcap.train.plan.activations import LLM, LOGITS, VISION, activation_bytes
from prismcap.train.plan.static import FP32_BYTES, Sharding, Sizes, StaticBytes, sizes_of, static_bytes
from prismcap.train.plan.worst_case import worst_batch

PARTS = ("weights", "gradients", "optimiser", "communication", LLM, LOGITS, VISION)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `passing` is what a forward and backward pass adds at its peak, by part."""

    static: StaticBytes
    passing: Counter[str]

    def parts(self) -> dict[str, int]:
        """By the names of PARTS, in their order."""
        static = self.static
        kept = (static.weights, static.gradients, static.optimizer, static.communication)
        return dict(zip(PARTS, (*kept, *(self.passing[part] for part in (LLM, LOGITS, VISION))), strict=True))

    @property
    def total(self) -> int:
        return sum(self.parts().values())


def shape_captioner(model: ModelConfig, stage: StageConfig) -> tuple[Captioner, FakeTensorMode]:
    """The captioner of shapes alone, prepared for the stage. What is made for it later, such as its pictures,
    must be made by the mode."""
    with shapes_only() as mode:
        captioner = build_captioner(model)
        captioner.llm.tie_weights()
        prepare_stage(captioner, stage.train)
        if stage.gradient_checkpointing:
            captioner.enable_gradient_checkpointing()
    return captioner, mode


def held_features_bytes(
    captioner: Captioner, stage: StageConfig, sharding: Sharding, num_at_work: int
) -> int:
    """Features held until a step's end, beside those of a micro-batch's `num_at_work` tiles, in fp32: a
    frozen encoder runs ahead of all micro-batches (train/encode_ahead.py). One picture a sample is assumed,
    with anyres of as many tiles as may be."""
    if captioner.trains_encoder or stage.feature_cache or sharding.zero_stage == 3:
        return 0
    pictures = math.ceil(stage.batch.samples_per_step / sharding.num_gpus)
    tiles = pictures * captioner.image_spec_of(stage.data).most_tiles - num_at_work
    encoder = captioner.vision_encoder
    return max(0, tiles) * encoder.features_per_tile * encoder.hidden_size * FP32_BYTES


@dataclass
class StageMemory:
    """Answers for one stage; each forward and backward pass of shapes is made once."""

    model: ModelConfig
    stage: StageConfig
    _made: tuple[Captioner, FakeTensorMode] | None = field(default=None, repr=False)
    # the pass by part, and the tiles in it
    _passes: dict[tuple[bool, int], tuple[Counter[str], int]] = field(default_factory=dict, repr=False)

    @property
    def captioner(self) -> Captioner:
        """Of shapes; see shape_captioner."""
        return self._shapes()[0]

    def _shapes(self) -> tuple[Captioner, FakeTensorMode]:
        if self._made is None:
            self._made = shape_captioner(self.model, self.stage)
        return self._made

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self.captioner, self.stage)

    def of(self, sharding: Sharding, num_rows: int | None = None) -> Memory:
        """With micro-batches of `num_rows` full rows (default: the config's)."""
        num_rows = num_rows or self.stage.batch.rows_per_micro_batch
        in_bf16 = sharding.weights_in_bf16(self.stage.precision)
        key = (in_bf16, num_rows)
        if key not in self._passes:
            captioner, mode = self._shapes()
            for parameter in captioner.parameters():  # DeepSpeed leaves buffers as they are
                parameter.data = parameter.data.to(torch.bfloat16 if in_bf16 else torch.float32)
            hold_frozen(captioner, self.stage.precision)
            batch = worst_batch(captioner, self.stage, num_rows)
            pictures: dict[str, Any] = {
                name: mode.from_tensor(value)
                for name in ("tiles", "features")
                if (value := getattr(batch, name)) is not None
            }
            found = activation_bytes(captioner, replace(batch, **pictures), self.stage.precision)
            self._passes[key] = found, len(batch.tile_image)
        found, num_tiles = self._passes[key]
        held = held_features_bytes(self.captioner, self.stage, sharding, num_tiles)
        return Memory(static_bytes(self.sizes, self.stage, sharding), found + Counter({VISION: held}))

    def most_rows(self, sharding: Sharding, device_bytes: float) -> int:
        """The largest number of full rows in a micro-batch that fits into `device_bytes`; 0 if none does.

        Pictures stay bounded by batch.images_per_micro_batch, as in training.
        """
        # memory grows nearly in proportion to rows: a straight line through two passes is close at once;
        # halving every second time keeps a bend in it from making the search long
        fits, above = 0, MOST_ROWS + 1
        first, guess = self.of(sharding, 1).total, 1
        halves = cycle((False, True))
        while above - fits > 1:
            total = self.of(sharding, guess).total
            if total <= device_bytes:
                fits = guess
            else:
                above = guess
            slope = (total - first) / (guess - 1) if guess > 1 else 0
            line = 1 + int((device_bytes - first) / slope) if slope > 0 else 2 * guess
            guess = (fits + above) // 2 if next(halves) else min(max(line, fits + 1), above - 1)
        return fits


# beyond this a larger micro-batch gains nothing, and the search ends
MOST_ROWS = 256


def configured_sharding(stage: StageConfig, num_gpus: int) -> Sharding:
    """Of the stage's own engine. A user's own engine counts as torch's."""
    if stage.engine.name != "deepspeed":
        return Sharding(None, num_gpus)
    options = component_options("engine", stage.engine)[1].model_dump()
    return Sharding(options["zero_stage"], num_gpus, options["offload_optimizer"], options["bucket_size"])
