"""What a stage trains on, and how it is cut into steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prismcap.configs.schema.base import Component, Section

Geometry = Literal["resize", "center_crop", "pad", "anyres"]
Side = Annotated[int, Field(ge=1)]
HD_TILES = 6  # of LLaVA-1.5-HD (arXiv 2310.03744, section 3.4): 1x1 to 1x6, 2x2, 2x3 and these turned


class MixItem(Component):
    """One source of the mix (data/sources/<name>.py), taken `repeat` times per epoch, or, with `per_step`,
    endlessly: so many samples of every step."""

    repeat: int = Field(default=1, ge=1)
    per_step: int | None = Field(
        default=None, ge=1, description="samples of every step; all items of the mix have it, or none"
    )

    @model_validator(mode="after")
    def _no_repeat_of_the_endless(self) -> MixItem:
        if self.per_step is not None and self.repeat != 1:
            raise ValueError(
                f"per_step={self.per_step} and repeat={self.repeat}: an item with per_step goes round by "
                "itself: leave repeat out, and give it more of a step with a larger per_step"
            )
        return self


class DataConfig(Section):
    """The data mix of a stage."""

    mix: tuple[MixItem, ...] = Field(min_length=1)
    geometry: Geometry = "resize"
    max_tiles: int | None = Field(
        default=None,
        ge=1,
        description="anyres: all grids of at most so many tiles; none: 6, as LLaVA-1.5-HD",
    )
    tile_grids: tuple[tuple[Side, Side], ...] | None = Field(
        default=None,
        min_length=1,
        description="anyres: these grids of [rows, columns] in place of all up to max_tiles; LLaVA-NeXT has "
        "[[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]",
    )
    max_tokens: int = Field(
        default=512, ge=8, description="longest sample, image tokens included; at most batch.row_tokens"
    )
    max_text_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most text tokens from the first answer on, pictures not counted, as MiniGPT-4's "
        "max_txt_len; the prompt is bounded by max_tokens alone",
    )
    max_image_pixels: int = Field(default=100_000_000, ge=1, description="larger pictures are not decoded")
    max_rejected_share: float = Field(default=0.05, ge=0, le=1, description="above this the run stops")
    num_workers: int = Field(default=1, ge=0)

    @property
    def per_step(self) -> tuple[int, ...] | None:
        """Samples of each item in every step; None for a mix that goes by epochs."""
        counts = tuple(item.per_step for item in self.mix if item.per_step is not None)
        return counts or None

    @model_validator(mode="after")
    def _all_per_step_or_none(self) -> DataConfig:
        without = [i for i, item in enumerate(self.mix) if item.per_step is None]
        if self.per_step and without:
            names = ", ".join(f"mix.{i} ({self.mix[i].name})" for i in without)
            raise ValueError(
                f"{names} without per_step, and others of the mix with it: give it to all items, or to none"
            )
        return self

    @model_validator(mode="after")
    def _tiles_are_of_anyres(self) -> DataConfig:
        given = [key for key in ("max_tiles", "tile_grids") if getattr(self, key) is not None]
        if given and self.geometry != "anyres":
            raise ValueError(f"{given[0]} is for geometry: anyres, and geometry is {self.geometry}")
        if len(given) == 2:
            raise ValueError("max_tiles and tile_grids both say which grids there are: give one of them")
        return self

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tiles that anyres chooses from; of equally good ones the first. Else empty."""
        if self.geometry != "anyres":
            return ()
        if self.tile_grids is not None:
            return self.tile_grids
        most = self.max_tiles or HD_TILES
        return tuple((rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1))


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
    rows_per_micro_batch: int = Field(
        default=4, ge=1, description="of a contrastive stage: pairs compared with each other"
    )
    images_per_micro_batch: int = Field(
        default=64,
        ge=1,
        description="what the encoder sees at once: pictures, or with geometry: anyres their tiles, the "
        "overview included",
    )
    packing: bool = Field(
        default=True,
        description="several samples in a row; false: one in each, padded to the longest of its batch",
    )
    grouping: Literal["none", "length", "modality_length"] = Field(
        default="none",
        description="which samples share a step. length: of similar length, as group_by_length of "
        "transformers; modality_length: all with pictures or all without, as LLaVA-1.5. For packing: false",
    )
