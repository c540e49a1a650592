"""The exchanges of a split: each scene with its captions and questions, for training and evaluation."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from prismcap.data.scenes.compose import SceneImage
from prismcap.data.scenes.graph import SceneGraph
from prismcap.data.scenes.make import SceneMaker
from prismcap.data.scenes.objects import ObjectSet, objects_root
from prismcap.data.scenes.splits import meets_held_out
from prismcap.data.scenes.text import (
    CAPTION_KINDS,
    CATEGORY_PLURALS,
    KINDS,
    Kind,
    Text,
    caption_text,
    count_question,
    long_caption,
    place_question,
    yes_no_question,
)
from prismcap.data.scenes.words import told_apart
from prismcap.data.schema import ImagePart, Message, Sample, SampleRejected, TextPart

ABSENT_SHARE = 0.25  # of the questions for a category: none of it is there
OBJECTS_SHARE = 0.25  # of the count questions: all objects are counted


@dataclass(frozen=True)
class SceneItem:
    """One sample with its ground truth. `answer` is what a right model says, `kind` how it is scored."""

    sample: Sample
    graph: SceneGraph
    text: Text
    scene: int

    @property
    def kind(self) -> Kind:
        return self.text.kind

    @property
    def answer(self) -> str:
        return self.text.answer


class SceneItems:
    """All exchanges of `num_scenes` scenes; those of one scene follow each other and share its picture.

    tasks: how many exchanges of each kind a scene gets. described: the long caption stands in place of the
    picture. Item i is a pure function of the arguments and i, and nothing is drawn until its picture is
    loaded. Usable as a data source.
    """

    def __init__(
        self,
        objects: ObjectSet,
        maker: SceneMaker,
        num_scenes: int,
        tasks: Mapping[Kind, int],
        described: bool = False,
    ) -> None:
        self.maker = maker
        self.num_scenes = num_scenes
        self.tasks = tuple((kind, number) for kind in KINDS for number in range(tasks.get(kind, 0)))
        self.described = described
        self.source = f"scenes/{objects.name}/{maker.split}{'/described' if described else ''}"
        self._pixels = {stamp.id: stamp.pixels for stamp in objects.stamps}
        self._root = str(objects_root())

    def __len__(self) -> int:
        return self.num_scenes * len(self.tasks)

    def __getitem__(self, index: int, /) -> Sample:
        return self.item(index).sample

    def graph(self, index: int) -> SceneGraph:
        """The scene of item `index`."""
        return self.maker.graph(self._position(index)[0])

    def item(self, index: int) -> SceneItem:
        """Item `index` with its ground truth. Raises IndexError past the end."""
        scene, (kind, number) = self._position(index)
        graph = self.maker.graph(scene)
        text = self._text(graph, kind, number, scene)
        images: tuple[SceneImage, ...] = ()
        asked: tuple[ImagePart | TextPart, ...] = (TextPart(f"{long_caption(graph)}\n{text.prompt}"),)
        if not self.described:
            pixels = tuple(self._pixels[item.stamp] for item in graph.objects)
            images = (SceneImage(graph, self._root, pixels),)
            asked = (ImagePart(0), TextPart(text.prompt))
        sample = Sample(
            id=f"{self.source}/{self.maker.seed}/{scene}/{kind}{number}",
            images=images,
            messages=(
                Message("user", asked),
                Message("assistant", (TextPart(text.answer),), train=True),
            ),
            source=self.source,
        )
        return SceneItem(sample, graph, text, scene)

    def _position(self, index: int) -> tuple[int, tuple[Kind, int]]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.source}: item {index} of {len(self)}")
        scene, task = divmod(index, len(self.tasks))
        return scene, self.tasks[task]

    def _text(self, graph: SceneGraph, kind: Kind, number: int, scene: int) -> Text:
        if kind in CAPTION_KINDS:
            return caption_text(graph, kind)
        rng = random.Random(f"{self.maker.seed}/{self.maker.split}/{scene}/{kind}/{number}")
        if kind == "place":
            target = [item for item in graph.objects if item.unseen]
            return place_question(graph, (target[0] if target else rng.choice(graph.objects)).place)
        if kind == "count":
            return count_question(graph, _category(rng, graph))
        # exactly half of them yes: scene after scene in turn
        return yes_no_question(graph, self._asked_word(rng, graph, yes=(scene + number) % 2 == 0))

    def _asked_word(self, rng: random.Random, graph: SceneGraph, yes: bool) -> str:
        """A word to ask for. In training, none that makes a held-out pair with a word of the scene.

        Raises SampleRejected when no word is left, which takes very few words.
        """
        if yes:
            target = [item.word for item in graph.objects if item.unseen]
            return target[0] if target else rng.choice(graph.words)
        held_apart = self.maker.split != "unseen_pairs"
        for word in rng.sample(self.maker.words, len(self.maker.words)):
            if word in graph.words or not told_apart(word, graph.words):
                continue
            if not (held_apart and meets_held_out(word, graph.words)):
                return word
        raise SampleRejected("no_question", f"{self.source}: no word is left to ask for beside {graph.words}")


def _category(rng: random.Random, graph: SceneGraph) -> str | None:
    """What to count: a category, or None for all objects (also where an object's category is arguable)."""
    kinds = {item.category for item in graph.objects}
    draw = rng.random()
    if "unclear" in kinds or draw < OBJECTS_SHARE:
        return None
    present = sorted(kinds & CATEGORY_PLURALS.keys())
    absent = sorted(CATEGORY_PLURALS.keys() - kinds)
    if draw < OBJECTS_SHARE + ABSENT_SHARE or not present:
        return rng.choice(absent)
    return rng.choice(present)
