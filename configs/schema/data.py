"""What a stage trains on, and how it is cut into steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prismcap.configs.schema.base import Component, Section


class MixItem(Component):
    """One source of the mix (data/sources/<name>.py), taken `repeat` times per epoch."""

    repeat: int = Field(default=1, ge=1)


class DataConfig(Section):
    """The data mix of a stage."""

    mix: tuple[MixItem, ...] = Field(min_length=1)
    geometry: Literal["resize", "center_crop", "pad"] = "resize"
    max_tokens: int = Field(
        default=512, ge=8, description="longest sample, image tokens included; at most batch.row_tokens"
    )
    max_image_pixels: int = Field(default=100_000_000, ge=1, description="larger pictures are not decoded")
    max_rejected_share: float = Field(default=0.05, ge=0, le=1, description="above this the run stops")
    num_workers: int = Field(default=1, ge=0)


class BatchConfig(Section):
    """One optimiser step takes `samples_per_step` samples over all ranks; they are packed into rows.

    The same samples make the same step whatever the number of ranks, workers or micro-batches, packed or not.
    """

    samples_per_step: int = Field(default=32, ge=1)
    row_tokens: int = Field(
        default=0,
        ge=0,
        description="most tokens of a packed row; 0: the default of the device "
        "(train/settle.py), and at least data.max_tokens",
    )
    rows_per_micro_batch: int = Field(default=4, ge=1)
    images_per_micro_batch: int = Field(default=64, ge=1)
    packing: bool = Field(
        default=True,
        description="several samples in a row; false: one in each, padded to the longest of its batch",
    )
    grouping: Literal["none", "length", "modality_length"] = Field(
        default="none",
        description="which samples share a step. length: of similar length, as group_by_length of "
        "transformers; modality_length: all with pictures or all without, as LLaVA-1.5. For packing: false",
    )
