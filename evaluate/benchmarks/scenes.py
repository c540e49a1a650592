"""Questions about composed scenes: our own benchmark, whose right answers follow from the scene graph.

Six abilities (the column `category`): recognition, category, left_right, counting, existence, size. Within
each, every letter is right equally often, to one question, and so is every category or number: no answer is a
good guess without the picture. What is not there is no near word of what is, and shares no word with the
reference description, which names every object with its place and size.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, replace

from pydantic import Field

from prismcap.configs.errors import ConfigError
from prismcap.data.scenes.compose import SceneImage
from prismcap.data.scenes.graph import LAYOUTS, SceneGraph
from prismcap.data.scenes.make import SceneMaker
from prismcap.data.scenes.objects import ObjectsName, load_objects, objects_root
from prismcap.data.scenes.splits import Split, limit_words
from prismcap.evaluate.benchmarks._contract import LETTERS, Benchmark, BenchmarkContext, Question
from prismcap.evaluate.benchmarks._scene_questions import (
    ABILITIES,
    NUM_OPTIONS,
    Ability,
    Asked,
    Asker,
    reference_of,
)
from prismcap.evaluate.benchmarks._selected import SelectedOptions, select

__all__ = ["Options", "build"]

# of 75 questions 20 ask for recognition and 11 for each other ability: 160 and 88 of 600
_OTHER_SHARE = 11 / 75
_MAX_SCENES = 50  # tried for one question, times the number of questions


class Options(SelectedOptions):
    """Which scenes, and how many questions about them."""

    objects: ObjectsName = "tuxpaint"
    split: Split = "unseen_pairs"
    num_questions: int = Field(default=600, ge=12)
    object_limit: int | None = Field(default=None, ge=16, description="number of words; none: all of the set")
    image_px: int = Field(default=192, ge=64, le=1024)
    small_share: float = Field(default=0.4, gt=0, lt=1, description="share of objects drawn small")
    seed: int | None = Field(default=None, description="none: the run's")


def build(options: Options, context: BenchmarkContext) -> Benchmark:
    """Draws nothing. Raises ConfigError: the object set is not fetched, or too small for the questions."""
    benchmark = ScenesBenchmark(options, context.seed if options.seed is None else options.seed)
    return select(benchmark, [str(position) for position in range(len(benchmark))], options)


class ScenesBenchmark:
    """Every prefix of ten or more has all abilities. A scene is asked at most once for each ability."""

    def __init__(self, options: Options, seed: int) -> None:
        objects = limit_words(load_objects(options.objects), options.object_limit)
        self._options = options
        self._seed = seed
        self._maker = SceneMaker(
            objects,
            split=options.split,
            num_objects=dict.fromkeys(LAYOUTS, 1.0),
            image_px=options.image_px,
            small_share=options.small_share,
            seed=seed,
        )
        self._pixels = {stamp.id: stamp.pixels for stamp in objects.stamps}
        self._asker = Asker(objects)
        numbers = shares(options.num_questions)
        graphs: list[SceneGraph] = []
        asked = {ability: self._ask_all(ability, numbers[ability], graphs) for ability in ABILITIES}
        self._questions: list[tuple[Ability, int, SceneGraph, Asked]] = []
        for ability in interleaved(numbers):
            scene, question = asked[ability].pop(0)
            self._questions.append((ability, scene, graphs[scene], question))
        self.checksum = self._checksum()

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, position: int, /) -> Question:
        if not 0 <= position < len(self):
            raise IndexError(f"scenes: question {position} of {len(self)}")
        ability, scene, graph, asked = self._questions[position]
        pixels = tuple(self._pixels[item.stamp] for item in graph.objects)
        return Question(
            id=str(position),
            kind="choice",
            text=asked.text,
            answer=LETTERS[asked.right],
            images=(SceneImage(graph, str(objects_root()), pixels),),
            options=asked.options,
            cluster=f"scene {scene}",
            categories={"category": ability},
            reference=reference_of(graph),
        )

    def _ask_all(self, ability: Ability, number: int, graphs: list[SceneGraph]) -> list[tuple[int, Asked]]:
        """(scene, question) in order: for each, the first scene that can carry it and was not asked so yet.

        graphs: of the first scenes; grows with what is looked at.
        """
        taken: set[int] = set()
        found = []
        for position, right in enumerate(self._right(ability, number)):
            scene, asked = self._ask(ability, position, right, taken, graphs)
            taken.add(scene)
            found.append((scene, asked))
        return found

    def _right(self, ability: Ability, number: int) -> list[int]:
        """Which option is to be right: each once in every so many questions, in random order."""
        rng = random.Random(f"{self._seed}/{self._options.split}/{ability}")
        order = list(range(NUM_OPTIONS[ability]))
        found: list[int] = []
        while len(found) < number:
            rng.shuffle(order)
            found += order
        return found[:number]

    def _ask(
        self, ability: Ability, position: int, right: int, taken: set[int], graphs: list[SceneGraph]
    ) -> tuple[int, Asked]:
        for scene in range(_MAX_SCENES * self._options.num_questions):
            if scene == len(graphs):
                graphs.append(self._maker.graph(scene))
            if scene in taken:
                continue
            rng = random.Random(f"{self._seed}/{self._options.split}/{scene}/{ability}/{position}")
            asked = self._asker.ask(ability, graphs[scene], position, right, rng)
            if asked is not None:
                return scene, asked
        raise ConfigError(
            f"scenes: no scene is left for question {position} of {ability}: raise object_limit, bring "
            "small_share nearer to 0.5, or lower num_questions"
        )

    def _checksum(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for position in range(len(self)):
            question = self[position]
            said = asdict(replace(question, images=()))
            pictures = [image.fingerprint() for image in question.images]
            digest.update(json.dumps([said, pictures], sort_keys=True).encode())
        return digest.hexdigest()


def shares(num_questions: int) -> dict[Ability, int]:
    """Questions of each ability; multiples of four, but for recognition's, where there is room."""
    others = int(num_questions * _OTHER_SHARE)
    others -= others % 4 if others > 4 else 0
    numbers = dict.fromkeys(ABILITIES, others)
    numbers["recognition"] = num_questions - others * (len(ABILITIES) - 1)
    return numbers


def interleaved(numbers: dict[Ability, int]) -> list[Ability]:
    """All questions' abilities, evenly mixed: the next is always of the one that lags most."""
    total = sum(numbers.values())
    done: dict[Ability, int] = dict.fromkeys(numbers, 0)
    found: list[Ability] = []
    for position in range(1, total + 1):
        # the first of equals, so that the order is the same everywhere
        ability = max(numbers, key=lambda name: numbers[name] * position / total - done[name])
        done[ability] += 1
        found.append(ability)
    return found
