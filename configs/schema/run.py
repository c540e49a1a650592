"""A run: the model, its stages, and where everything goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from prismcap.configs.errors import nearest
from prismcap.configs.schema.base import Component, Section
from prismcap.configs.schema.stage import StageConfig

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_TAG = 64  # characters that wandb takes


class ModelConfig(Section):
    vision_encoder: Component
    connector: Component
    llm: Component
    image_newline: bool = Field(
        default=False,
        description="a learned embedding, of the connector's group, ends each row of an anyres picture; "
        "needed by stages with geometry: anyres",
    )


class LoggingConfig(Section):
    """Where the step records go, besides the JSONL file that is always written."""

    sinks: tuple[Literal["wandb", "tensorboard"], ...] = ()
    project: str = "prismcap"
    group: str | None = Field(default=None, min_length=1, description="wandb: runs that belong together")
    tags: tuple[Annotated[str, Field(min_length=1, max_length=MAX_TAG)], ...] = ()
    every_steps: int = Field(default=1, ge=1)


class SplitConfig(Section):
    """A held-out part of the evaluation: a source with scene graphs, and how many of its items."""

    source: Component
    num_items: int = Field(
        default=200,
        ge=1,
        description="items of each kind of text; of captions, for each number of objects",
    )


def metric_key(name: str) -> str:
    """What the figures of a metric are called by: its name, of your own module the last part."""
    return name.rpartition(".")[2]


class EvaluationConfig(Section):
    """Held-out measures after training (evaluate/scenes)."""

    splits: dict[str, SplitConfig] = Field(min_length=1)
    caption_loss: dict[str, str] = Field(
        default_factory=dict,
        description="stage -> split: caption loss right after that stage, on true and other pictures",
    )
    metrics: tuple[Component, ...] = Field(
        default=(), description="caption metrics (evaluate/metrics) of each split's short and long captions"
    )
    batch_size: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    quick: bool = Field(default=False, description="label the figures as those of a first look")

    @field_validator("splits")
    @classmethod
    def _no_dots(cls, splits: dict[str, SplitConfig]) -> dict[str, SplitConfig]:
        for name in splits:
            if "." in name:
                raise ValueError(f"the split name {name!r} has a dot: figures are called <split>.<figure>")
        return splits

    @field_validator("metrics")
    @classmethod
    def _figures_have_one_name(cls, metrics: tuple[Component, ...]) -> tuple[Component, ...]:
        keys = [metric_key(metric.name) for metric in metrics]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise ValueError(f"{position}: {key!r} is there already, and figures are called {key}.<…>")
        return metrics


class RunConfig(Section):
    """The whole of one YAML file, after `base:` and the overrides."""

    name: str = Field(pattern=RUN_NAME)
    seed: int = 0
    output_dir: str = "checkpoints"
    num_threads: int | None = Field(
        default=None, ge=1, description="torch threads per process; none: torch decides"
    )
    model: ModelConfig
    stages: dict[str, StageConfig] = Field(min_length=1)
    prompt: str = Field(
        default="Describe the picture.",
        min_length=1,
        description="the instruction that captioning asks by default; written into the export",
    )
    logging: LoggingConfig = LoggingConfig()
    evaluation: EvaluationConfig | None = None

    @field_validator("stages")
    @classmethod
    def _stage_names(cls, stages: dict[str, StageConfig]) -> dict[str, StageConfig]:
        for name in stages:
            if not name.isidentifier():
                raise ValueError(f"stage name {name!r} must be letters, digits and underscores")
        return stages

    @model_validator(mode="after")
    def _caption_loss_is_of_captions(self) -> RunConfig:
        for name in self.evaluation.caption_loss if self.evaluation else ():
            if name in self.stages and self.stages[name].kind == "contrastive":
                raise ValueError(
                    f"evaluation.caption_loss.{name}: a contrastive stage writes no captions: name another"
                )
        return self

    @model_validator(mode="after")
    def _stages_evaluate_what_the_run_does(self) -> RunConfig:
        splits = self.evaluation.splits if self.evaluation else {}
        for stage, config in self.stages.items():
            for name in config.evaluate.splits if config.evaluate else ():
                if name not in splits:
                    raise ValueError(
                        f"stages.{stage}.evaluate.splits: no split {name!r} in evaluation.splits."
                        f"{nearest(name, splits) or ' Add the section evaluation.'}"
                    )
            metrics = [metric_key(one.name) for one in self.evaluation.metrics] if self.evaluation else []
            for name in config.evaluate.metrics if config.evaluate else ():
                if name not in metrics:
                    raise ValueError(
                        f"stages.{stage}.evaluate.metrics: no metric {name!r} in evaluation.metrics."
                        f"{nearest(name, metrics) or ' Add it there.'}"
                    )
        return self

    @model_validator(mode="after")
    def _newline_goes_with_anyres(self) -> RunConfig:
        anyres = [name for name, stage in self.stages.items() if stage.data.geometry == "anyres"]
        if anyres and not self.model.image_newline:
            raise ValueError(
                f"stages.{anyres[0]}.data.geometry: anyres ends the rows of a picture with a learned "
                "embedding, and the model has none: set model.image_newline: true"
            )
        if self.model.image_newline and not anyres:
            raise ValueError(
                "model.image_newline: true, and no stage has data.geometry: anyres, whose rows it ends"
            )
        return self
