"""Scenes composed of cut-out drawings, with captions and questions whose answers are exactly known."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from prismcap.configs.schema.base import Section
from prismcap.data.scenes.graph import LAYOUTS
from prismcap.data.scenes.items import SceneItem, SceneItems
from prismcap.data.scenes.make import SceneMaker
from prismcap.data.scenes.objects import ObjectsName, load_objects
from prismcap.data.scenes.splits import Split, limit_words
from prismcap.data.scenes.text import Kind
from prismcap.data.sources._contract import SourceContext

__all__ = ["Options", "SceneItem", "build"]


class Options(Section):
    """Which scenes, and which exchanges about each. Held-out parts depend on no option."""

    objects: ObjectsName = "tuxpaint"
    split: Split = "train"
    num_scenes: int = Field(default=1000, ge=1)
    num_objects: dict[int, float] = Field(
        default={2: 1.0}, min_length=1, description="weight by number of objects, or a list of equal weights"
    )
    tasks: dict[Kind, int] = Field(default={"short": 1}, description="exchanges of each kind per scene")
    object_limit: int | None = Field(default=None, ge=16, description="number of words; none: all of the set")
    image_px: int = Field(default=192, ge=64, le=1024)
    small_share: float = Field(default=0.4, ge=0, le=1, description="share of objects drawn small")
    seed: int | None = Field(default=None, description="none: the run's")
    described: bool = Field(
        default=False,
        description="the long caption in place of the picture: text alone, for an LLM to learn the language",
    )

    @field_validator("num_objects", mode="before")
    @classmethod
    def _list_means_equal_weights(cls, value: Any) -> Any:
        return {count: 1.0 for count in value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _something_to_do(self) -> Options:
        wrong = [count for count, weight in self.num_objects.items() if count not in LAYOUTS or weight <= 0]
        if wrong:
            raise ValueError(f"num_objects: {wrong}: from 1 to {max(LAYOUTS)} objects, with a weight above 0")
        if min(self.tasks.values(), default=0) < 0 or sum(self.tasks.values()) < 1:
            raise ValueError("tasks: at least one exchange per scene, and no negative number")
        return self


def build(options: Options, context: SourceContext) -> SceneItems:
    """Raises ConfigError when the object set has not been fetched, or has too few words."""
    objects = limit_words(load_objects(options.objects), options.object_limit)
    maker = SceneMaker(
        objects,
        split=options.split,
        num_objects=options.num_objects,
        image_px=options.image_px,
        small_share=options.small_share,
        seed=context.seed if options.seed is None else options.seed,
    )
    return SceneItems(objects, maker, options.num_scenes, options.tasks, options.described)
