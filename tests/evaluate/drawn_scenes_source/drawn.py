"""A source of scenes without drawings: coloured rectangles, so that the tests here need no downloads."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from prismcap.configs.schema.base import Section
from prismcap.data.scenes.graph import LAYOUTS, Background, SceneGraph, SceneObject
from prismcap.data.scenes.text import (
    Kind,
    Text,
    caption_text,
    count_question,
    place_question,
    yes_no_question,
)
from prismcap.data.schema import ImagePart, Message, Sample, TextPart
from prismcap.data.sources._contract import SourceContext

WORDS = ("tiger", "hammer", "boat", "apple", "house", "drum", "shoe", "clock", "fish", "tree")
BOXES = {"left": (2, 10), "right": (18, 10), "middle": (10, 10), "top": (10, 2), "bottom": (10, 18)}
BOXES |= {"top left": (2, 2), "top right": (18, 2), "bottom left": (2, 18), "bottom right": (18, 18)}


class Options(Section):
    num_scenes: int = 60
    kinds: tuple[Kind, ...] = ("short", "place", "count", "yes_no")
    num_objects: tuple[int, ...] = (1, 2)
    unseen: bool = False


@dataclass(frozen=True)
class DrawnScene:
    """One rectangle per object; its colour stands for the word."""

    graph: SceneGraph

    def load(self) -> Image.Image:
        picture = Image.new("RGB", (32, 32), "white")
        draw = ImageDraw.Draw(picture)
        for item in self.graph.objects:
            x, y = BOXES[item.place]
            colour = f"hsl({36 * WORDS.index(item.word)}, 80%, 45%)"
            draw.rectangle((x, y, x + 11, y + 11), fill=colour)
        return picture

    def fingerprint(self) -> str:
        return self.graph.digest()


@dataclass(frozen=True)
class Found:
    sample: Sample
    graph: SceneGraph
    kind: Kind
    answer: str


@dataclass(frozen=True)
class DrawnScenes:
    options: Options
    seed: int

    def __len__(self) -> int:
        return self.options.num_scenes * len(self.options.kinds)

    def __getitem__(self, index: int, /) -> Sample:
        return self.item(index).sample

    def item(self, index: int, /) -> Found:
        """Item `index`: scene index // kinds, asked for one kind of text."""
        number, which = divmod(index, len(self.options.kinds))
        kind = self.options.kinds[which]
        rng = random.Random(f"{self.seed}/{number}")
        graph = self.graph(rng)
        text = ask(graph, kind, rng)
        messages = (
            Message("user", (ImagePart(0), TextPart(text.prompt))),
            Message("assistant", (TextPart(text.answer),), train=True),
        )
        sample = Sample(f"{number}/{kind}", (DrawnScene(graph),), messages, "drawn")
        return Found(sample, graph, kind, text.answer)

    def graph(self, rng: random.Random) -> SceneGraph:
        places = rng.choice(LAYOUTS[rng.choice(self.options.num_objects)])
        words = rng.sample(WORDS, len(places))
        objects = tuple(
            SceneObject(
                word,
                f"drawn:{word}",
                "animal",
                place,
                "large",
                (0, 0, 9, 9),
                unseen=self.options.unseen and i == 0,
            )
            for i, (word, place) in enumerate(zip(words, places, strict=True))
        )
        return SceneGraph(32, Background("white", "plain"), objects)


def ask(graph: SceneGraph, kind: Kind, rng: random.Random) -> Text:
    if kind == "place":
        return place_question(graph, rng.choice(graph.objects).place)
    if kind == "count":
        return count_question(graph, None)
    if kind == "yes_no":
        absent = [word for word in WORDS if word not in graph.words]
        return yes_no_question(graph, rng.choice(graph.words if rng.random() < 0.5 else absent))
    return caption_text(graph, kind)


def build(options: Options, context: SourceContext) -> DrawnScenes:
    return DrawnScenes(options, context.seed)
