"""Evaluation of a stage while it trains."""

from __future__ import annotations

from pydantic import Field, model_validator

from prismcap.configs.schema.base import Section


class StageEvaluationConfig(Section):
    """Held-out measures every few steps, on fewer items than after training, and the best weights by one of
    them."""

    every_steps: int = Field(ge=1, description="and after the last step of the stage")
    splits: tuple[str, ...] = Field(min_length=1, description="of the run's evaluation.splits")
    num_items: int = Field(
        default=64, ge=1, description="items of each kind of text, the split's first ones; at most its own"
    )
    metrics: tuple[str, ...] = Field(
        default=(), description="of the run's evaluation.metrics, by name: measured of the captions too"
    )
    max_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="of the stage's time so far that its evaluations may take; one that would take more, by "
        "how long the last one took, is put off. The one after the last step never is",
    )
    best: str | None = Field(
        default=None,
        description="<split>.<figure>, of metrics <split>.<metric>.<figure>: the stage ends with the weights "
        "of the step where this was best",
    )
    higher_is_better: bool = Field(default=True, description="of the figure that `best` names")

    @model_validator(mode="after")
    def _best_is_measured(self) -> StageEvaluationConfig:
        if self.best is None:
            return self
        split, _, figure = self.best.partition(".")
        if not figure:
            raise ValueError(f"best: {self.best!r} must be <split>.<figure>: {self.splits[0]}.all_right, …")
        if split not in self.splits:
            raise ValueError(
                f"best: {self.best!r} is of none of these: {', '.join(self.splits)}; add its own"
            )
        return self

    @model_validator(mode="after")
    def _splits_differ(self) -> StageEvaluationConfig:
        if len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits: {', '.join(self.splits)}: one is given twice")
        return self
