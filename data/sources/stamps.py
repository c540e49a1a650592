"""Single drawings with the word that names them: caption pairs that say nothing but what is seen."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import Field

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.data.scenes.compose import COLORS, SceneImage
from prismcap.data.scenes.graph import Background, Place, SceneGraph, Size
from prismcap.data.scenes.make import clear_colors, draw_single, place_object
from prismcap.data.scenes.objects import ObjectSet, ObjectsName, Stamp, load_objects, objects_root
from prismcap.data.scenes.splits import held_out_drawings, limit_words, single_held_out
from prismcap.data.scenes.text import SHORT_PROMPT
from prismcap.data.scenes.words import with_article
from prismcap.data.schema import ImagePart, Message, Sample, TextPart
from prismcap.data.sources._contract import SourceContext


class Options(Section):
    """Which drawings: those of training, or those held out of it (splits of the source `scenes`)."""

    objects: ObjectsName = "tuxpaint"
    split: Literal["train", "unseen_stamps"] = "train"
    object_limit: int | None = Field(default=None, ge=16, description="number of words; none: all of the set")
    image_px: int = Field(default=192, ge=64, le=1024)
    views: int = Field(
        default=1,
        ge=1,
        description="pictures of each drawing: the first shows it large in the middle of a plain colour, "
        "the others anywhere, in either size, on any background",
    )
    seed: int | None = Field(default=None, description="none: the run's")


class Stamps:
    """`views` samples for each drawing, view after view: `A tiger.`"""

    def __init__(self, objects: ObjectSet, options: Options, seed: int) -> None:
        held = held_out_drawings(objects)
        wanted = options.split == "unseen_stamps"
        self.stamps = tuple(stamp for stamp in objects.stamps if (stamp.id in held) == wanted)
        if not self.stamps:
            raise ConfigError(f"objects: {objects.name!r} has no drawings for the split {options.split!r}")
        self.views = options.views
        self.image_px = options.image_px
        self.seed = seed
        self.source = f"stamps/{objects.name}/{options.split}"
        self.unseen = wanted
        self._root = str(objects_root())

    def __len__(self) -> int:
        return len(self.stamps) * self.views

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.source}: item {index} of {len(self)}")
        stamp, name = self._drawing(index)
        caption = with_article(stamp.word)
        return Sample(
            id=f"{self.source}/{self.seed}/{name}",
            images=(SceneImage(self.graph(index), self._root, (stamp.pixels,)),),
            messages=(
                Message("user", (ImagePart(0), TextPart(SHORT_PROMPT))),
                Message("assistant", (TextPart(f"{caption[0].upper()}{caption[1:]}."),), train=True),
            ),
            source=self.source,
        )

    def graph(self, index: int) -> SceneGraph:
        """Of sample `index`. A single scene that `scenes` holds out is not shown here either."""
        stamp, name = self._drawing(index)
        rng = random.Random(f"{self.seed}/{self.source}/{name}")
        first = index < len(self.stamps)
        drawn = self._in_the_middle(rng, stamp) if first else draw_single(rng, stamp, held_out=False)
        background, place, size = drawn
        found = place_object(rng, stamp, place, size, 1, self.image_px, unseen=self.unseen)
        return SceneGraph(self.image_px, background, (found,))

    def _in_the_middle(self, rng: random.Random, stamp: Stamp) -> tuple[Background, Place, Size]:
        """Large, on a plain colour that shows it."""
        for colors in (clear_colors([stamp]), list(COLORS)):
            backgrounds = [Background(color, "plain") for color in colors]
            free = [b for b in backgrounds if not single_held_out(stamp.word, b, "middle", "large")]
            if free:
                return rng.choice(free), "middle", "large"
        raise ConfigError(f"{stamp.id}: every plain background is held out")

    def _drawing(self, index: int) -> tuple[Stamp, str]:
        """Of sample `index`, and the sample's name: the first view has the drawing's."""
        view, number = divmod(index, len(self.stamps))
        stamp = self.stamps[number]
        return stamp, f"{stamp.id}/{view}" if view else stamp.id


def build(options: Options, context: SourceContext) -> Stamps:
    """Raises ConfigError when the object set has not been fetched."""
    objects = limit_words(load_objects(options.objects), options.object_limit)
    return Stamps(objects, options, context.seed if options.seed is None else options.seed)
