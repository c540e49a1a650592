"""An ablation: one config, axes along which it is changed, and seeds."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prismcap.configs.schema.base import Section
from prismcap.configs.schema.run import RUN_NAME

# mappings are laid over the config as a file is over its base; a list holds overrides as on the command line
Overlay = dict[str, Any] | tuple[str, ...]
LEVEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_]*$"  # cells are folders called <axis>.<level>-…


class AxisConfig(Section):
    """What is changed, in at least two levels; the first is what the others are held against."""

    question: str = Field(min_length=1, description="what the axis asks, in words; the report's heading")
    levels: dict[str, Overlay] = Field(min_length=2)
    cumulative: bool = Field(
        default=False, description="each level on top of all before it (a ladder), and held against the last"
    )


class LaunchConfig(Section):
    """How a cell is run. local: processes of this machine, each under torchrun if it has more than one rank;
    slurm: array jobs."""

    name: Literal["local", "slurm"] = "local"
    num_processes: int = Field(default=1, ge=1, description="ranks of a cell; above 1: torchrun")
    parallel: int = Field(default=1, ge=1, description="cells at once; of an array job its `%` limit")
    sbatch: tuple[str, ...] = Field(default=(), description="options of sbatch: --gres=gpu:8, --time=…")
    evaluate: bool = Field(default=True, description="prismcap evaluate after training")


class AblationConfig(Section):
    """The whole of one ablation's YAML file, after `base:` and the overrides."""

    name: str = Field(pattern=RUN_NAME)
    output_dir: str = "checkpoints"
    question: str = Field(min_length=1, description="what the ablation asks, in words")
    run: str = Field(
        description="the config of every cell: a file beside this one, or a preset; of training or of Prism"
    )
    set: Overlay = Field(default={}, description="laid over the run's config in every cell")
    axes: dict[str, AxisConfig] = Field(min_length=1)
    combine: Literal["grid", "list", "paired"] = Field(
        default="list",
        description="grid: every combination of levels; list: one axis at a time, the others at their first "
        "level; paired: level k of every axis together",
    )
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    figures: tuple[str, ...] = Field(
        min_length=1, description="<split>.<figure> of the evaluation, the one that decides first"
    )
    cost: Literal["device_hours", "tokens"] = Field(
        default="device_hours", description="the report's other axis: what accuracy is held against"
    )
    launch: LaunchConfig = LaunchConfig()

    @field_validator("axes")
    @classmethod
    def _names(cls, axes: dict[str, AxisConfig]) -> dict[str, AxisConfig]:
        for axis, config in axes.items():
            for name in (axis, *config.levels):
                if not re.fullmatch(LEVEL_NAME, name):
                    raise ValueError(f"{axis}: the name {name!r} must be letters, digits and underscores")
        return axes

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {list(seeds)}: one is given twice")
        return seeds

    @model_validator(mode="after")
    def _pairs_have_partners(self) -> AblationConfig:
        lengths = {axis: len(config.levels) for axis, config in self.axes.items()}
        if self.combine == "paired" and len(set(lengths.values())) > 1:
            raise ValueError(f"combine: paired needs axes of one length, and they have {lengths}")
        return self
