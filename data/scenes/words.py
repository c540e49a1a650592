"""The reviewed word lists: which word names which drawing of an object set, and how a word is said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from prismcap.configs.errors import DataError

FOLDER = Path(__file__).parent
# a word must survive the round trip through a caption, so it holds no comma, full stop or "and"
WORD_PATTERN = re.compile(r"(?!.*\band\b)[a-z][a-z'-]*(?: [a-z0-9][a-z0-9'-]*)*")
CAPTION_PATTERN = re.compile(r"(?:An?|Some) ([^.,:;!?()“”\"]+)[.!]?")
MAX_CAPTION_WORDS = 4  # longer ones are jokes, instructions or lessons
_YOU_SOUND = ("uni", "use", "uku", "euro", "one")  # vowels in writing, consonants in speech


@dataclass(frozen=True)
class Manners:
    """words.yaml: how words are said. overlap: for each word, those it cannot be told from in a question."""

    plural: frozenset[str]
    mass: frozenset[str]
    overlap: dict[str, frozenset[str]]


@dataclass(frozen=True)
class WordList:
    """words_<set>.yaml: the naming of one object set.

    words: the drawings of each reviewed word. names: word by drawing, its inverse. groups: category
    by folder. categories: category by word, which goes before the folder's.
    """

    words: dict[str, tuple[str, ...]]
    names: dict[str, str]
    excluded: frozenset[str]
    groups: dict[str, str]
    categories: dict[str, str]

    def word(self, drawing: str, caption: str) -> str | None:
        """The word of a drawing, or None when it is not to be used."""
        if drawing in self.excluded:
            return None
        if drawing in self.names:
            return self.names[drawing]
        if caption:
            return caption_word(caption)
        own = drawing.replace("_", " ")
        return own if own in self.categories else None

    def category(self, word: str, group: str) -> str:
        """animal, food, plant, vehicle, building, clothes, tool, instrument, thing or unclear."""
        if word in self.categories:
            return self.categories[word]
        folders = group.split("/")
        for end in range(len(folders), 0, -1):
            found = self.groups.get("/".join(folders[:end]))
            if found is not None:
                return found
        return "unclear"


def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return values


@lru_cache(maxsize=1)
def manners() -> Manners:
    """How words are said; the committed list, read once per process."""
    values = _read("words.yaml")
    overlap: dict[str, set[str]] = {}
    for group in values["overlap"]:
        for word in group:
            overlap.setdefault(word, set()).update(group)
    return Manners(
        plural=frozenset(values["plural"]),
        mass=frozenset(values["mass"]),
        overlap={word: frozenset(group) for word, group in overlap.items()},
    )


@lru_cache(maxsize=4)
def word_list(name: str) -> WordList:
    """The reviewed list of one object set. Raises DataError when it names a drawing or a word twice."""
    file = f"words_{name}.yaml"
    values = _read(file)
    names: dict[str, str] = {}
    for word, drawings in values["words"].items():
        if not WORD_PATTERN.fullmatch(word):
            raise DataError(
                f"{file}: words: {word!r} cannot be read back from a caption: letters and blanks only"
            )
        for drawing in drawings:
            if drawing in names:
                raise DataError(f"{file}: words: {drawing!r} stands below {names[drawing]!r} and {word!r}")
            names[drawing] = word
    categories: dict[str, str] = {}
    for category, words in values["categories"].items():
        for word in words:
            if categories.setdefault(word, category) != category:
                raise DataError(f"{file}: categories: {word!r} is {categories[word]!r} and {category!r}")
    return WordList(
        words={word: tuple(drawings) for word, drawings in values["words"].items()},
        names=names,
        excluded=frozenset(values.get("exclude", ())),
        groups=values.get("groups", {}),
        categories=categories,
    )


def caption_word(caption: str) -> str | None:
    """`A tennis ball.` -> `tennis ball`; None unless it is "A/An/Some …" in at most four plain words."""
    match = CAPTION_PATTERN.fullmatch(caption.strip())
    if match is None or len(caption.split()) > MAX_CAPTION_WORDS:
        return None
    word = match[1].lower().replace("’", "'").strip()
    return word if WORD_PATTERN.fullmatch(word) else None


def with_article(word: str) -> str:
    """`a tiger`, `an apple`, `some grapes`: decided by the word alone."""
    if word in manners().plural | manners().mass:
        return f"some {word}"
    vowel = word[0] in "aeiou" and not word.startswith(_YOU_SOUND)
    return f"{'an' if vowel else 'a'} {word}"


def told_apart(word: str, others: tuple[str, ...]) -> bool:
    """Whether a question for `word` has a clear answer in a picture that holds `others`."""
    group = manners().overlap.get(word, frozenset())
    return not any(other != word and other in group for other in others)
