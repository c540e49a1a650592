"""One question about a composed scene, with its options and the letter of the right one.

Which answer is to be right is given from outside, so that it can be balanced; a scene that cannot carry such
a question gives none. Every question is a pure function of the graph, what is wanted and the random numbers.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prismcap.data.scenes.graph import SceneGraph, SceneObject
from prismcap.data.scenes.objects import ObjectSet
from prismcap.data.scenes.text import (
    CATEGORY_PLURALS,
    NUMBERS,
    PLACE_PHRASES,
    long_caption,
    short_caption,
    yes_no_question,
)
from prismcap.data.scenes.words import manners, told_apart

Ability = Literal["recognition", "category", "left_right", "counting", "existence", "size"]
ABILITIES: tuple[Ability, ...] = ("recognition", "category", "left_right", "counting", "existence", "size")
NUM_OPTIONS: dict[Ability, int] = {
    "recognition": 4,
    "category": 4,
    "left_right": 2,
    "counting": 4,
    "existence": 2,
    "size": 2,
}
CATEGORY_OPTIONS = {
    "animal": "an animal",
    "food": "something to eat",
    "plant": "a plant",
    "vehicle": "a vehicle",
    "building": "a building",
    "clothes": "something to wear",
    "tool": "a tool",
    "instrument": "a musical instrument",
}
_ARGUABLE = ("food", "plant")  # a lemon is both: only the one with more words is asked for
_WORD = re.compile(r"[a-z0-9'-]+")


@dataclass(frozen=True)
class Asked:
    """`right`: position of the right option."""

    text: str
    options: tuple[str, ...]
    right: int


def reference_of(graph: SceneGraph) -> str:
    """All that is in a scene, in words: number, background, and each object with its place and size."""
    return f"{long_caption(graph)} {short_caption(graph)}"


class Asker:
    """Asks for the words and categories of one object set."""

    def __init__(self, objects: ObjectSet) -> None:
        self.words = objects.words
        numbers = Counter({stamp.word: stamp.category for stamp in objects.stamps}.values())
        rarer = min(_ARGUABLE, key=lambda category: numbers[category])
        known = [category for category in CATEGORY_OPTIONS if category != rarer]
        self.categories = tuple(category for category in known if numbers[category])
        # of few, the others are offered too, though never right
        self.offered = (
            self.categories
            if len(self.categories) >= 4
            else (*self.categories, *(category for category in known if not numbers[category]))
        )
        self.counted = max(known, key=lambda category: numbers[category])

    def ask(
        self, ability: Ability, graph: SceneGraph, number: int, right: int, rng: random.Random
    ) -> Asked | None:
        """Question `number` of an ability, whose right option is to stand at position `right`."""
        if ability == "recognition":
            return self._recognition(graph, right, rng)
        if ability == "category":
            return self._category(graph, number, right, rng)
        if ability == "left_right":
            return _left_right(graph, right, rng)
        if ability == "counting":
            # four questions in a row, with each of the four answers once, count the same
            return self._counting(graph, None if number // 4 % 2 == 0 else self.counted, right)
        if ability == "existence":
            return self._existence(graph, right, rng)
        return _size(graph, right, rng)

    def absent(self, graph: SceneGraph, number: int, rng: random.Random) -> list[str]:
        """Words of which nothing like is in the scene, and which share no word with its reference or another.

        Fewer than `number` where the object set has no more.
        """
        said = reference_of(graph).lower()
        taken = set(_WORD.findall(said))
        found: list[str] = []
        for word in rng.sample(self.words, len(self.words)):
            if len(found) == number:
                break
            own = set(_WORD.findall(word))
            if word not in said and not own & taken and told_apart(word, graph.words):
                found.append(word)
                taken |= own
        return found

    def _recognition(self, graph: SceneGraph, right: int, rng: random.Random) -> Asked | None:
        wrong = self.absent(graph, 3, rng)
        if len(wrong) < 3:
            return None
        return _placed("Which of these is in the picture?", rng.choice(graph.words), wrong, right)

    def _category(self, graph: SceneGraph, number: int, right: int, rng: random.Random) -> Asked | None:
        """In a row of as many questions as there are categories, each is right once and wrong three times."""
        block, own = divmod(number, len(self.categories))
        category = self.categories[own]
        those = [item for item in graph.objects if item.category == category]
        if not those:
            return None
        steps = random.Random(block).sample(range(1, len(self.offered)), 3)
        wrong = [CATEGORY_OPTIONS[self.offered[(own + step) % len(self.offered)]] for step in steps]
        asked = f"What kind of thing is {PLACE_PHRASES[rng.choice(those).place]}?"
        return _placed(asked, CATEGORY_OPTIONS[category], wrong, right)

    def _counting(self, graph: SceneGraph, category: str | None, right: int) -> Asked | None:
        """The options in the order of numbers: the right one's position is the answer."""
        kinds = [item.category for item in graph.objects]
        if category is None:
            text, first, count = "How many objects are there?", 1, len(kinds)
        else:
            arguable = {*_ARGUABLE} - {category} if category in _ARGUABLE else set()
            if not {"unclear", *arguable}.isdisjoint(kinds):
                return None
            text, first, count = f"How many {CATEGORY_PLURALS[category]} are there?", 0, kinds.count(category)
        return Asked(text, NUMBERS[first : first + 4], right) if count == first + right else None

    def _existence(self, graph: SceneGraph, right: int, rng: random.Random) -> Asked | None:
        words = [rng.choice(graph.words)] if right == 0 else self.absent(graph, 1, rng)
        if not words:
            return None
        return Asked(yes_no_question(graph, words[0]).prompt, ("Yes", "No"), right)


def _left_right(graph: SceneGraph, right: int, rng: random.Random) -> Asked | None:
    side = ("left", "right")[right]
    those = [item for item in graph.objects if side in item.place.split()]
    if not those:
        return None
    text = f"{_is_the(rng.choice(those))} on the left or on the right?"
    return Asked(text, ("on the left", "on the right"), right)


def _size(graph: SceneGraph, right: int, rng: random.Random) -> Asked | None:
    those = [item for item in graph.objects if item.size == ("small", "large")[right]]
    if not those:
        return None
    return Asked(f"{_is_the(rng.choice(those))} small or large?", ("small", "large"), right)


def _is_the(item: SceneObject) -> str:
    return f"{'Are' if item.word in manners().plural else 'Is'} the {item.word}"


def _placed(text: str, answer: str, wrong: Sequence[str], right: int) -> Asked:
    return Asked(text, (*wrong[:right], answer, *wrong[right:]), right)
