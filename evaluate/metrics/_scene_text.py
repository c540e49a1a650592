"""What a text says of a composed scene, and what there is to be said.

Captions in the form of data/scenes/text.py are read as they are meant, unknown words included. Of any other
text the words of the object sets and the phrases for places are found, and put together by a rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from prismcap.data.scenes.compose import COLORS, TEXTURES
from prismcap.data.scenes.graph import SceneGraph, Size
from prismcap.data.scenes.text import (
    ANY_PLACE_PHRASE,
    NUMBERS,
    PLACE_PHRASES,
    PLACES_OF_PHRASES,
    parse_short_caption,
)
from prismcap.data.scenes.words import manners, with_article
from prismcap.evaluate.metrics._terms import Mention, Terms
from prismcap.evaluate.metrics._vocabulary import scene_vocabulary
from prismcap.evaluate.scoring.mentions import NUMBER_WORDS
from prismcap.evaluate.scoring.replies import sentences

READER_VERSION = 1  # raise it whenever a text is read otherwise
StatementKind = Literal["object", "place", "number", "background"]

_LONG = re.compile(
    rf"(?P<place>{ANY_PLACE_PHRASE}) (?:is|are) (?:an?|some) "
    rf"(?:{'|'.join(get_args(Size))}) (?P<word>[^,.?!]+)[.!?]?"
)
# "on the left of the tiger" says where the tiger is not; without possessive quantifiers "on the left side of
# the tiger" would be found shorter
_FREE_PLACE = re.compile(
    r"\b(?:on|at|in|to|near|towards?)\s+(?:the|its)\s+(?:far\s+|very\s+)?"
    r"(?:(?P<row>top|upper|bottom|lower)(?:[\s-]+(?P<corner>left|right)\b)?+|(?P<side>left|right)|"
    r"(?P<middle>middle|cent(?:er|re)))\b(?:[\s-]+(?:hand|side|corner|part|half|edge)\b)*+"
    r"(?!\s+of\s+(?!(?:the|this)\s+(?:picture|image|scene|photo|frame|background)\b))"
)
_ROWS = {"upper": "top", "lower": "bottom"}
_NUMBER = re.compile(
    rf"\b(?P<number>{'|'.join(NUMBER_WORDS)}|\d+)\s+(?:different\s+|separate\s+|distinct\s+)?"
    r"(?:objects?|things?|items?)\b"
)
_SPELLINGS = {"grey": "gray", "stripes": "striped", "dots": "dotted", "spotted": "dotted"}
_SPELLINGS |= {"checkered": "checked", "chequered": "checked", "checks": "checked", "solid": "plain"}
# what describes a background; orange is none of its colours, and is not the fruit there
_DESCRIBES = (*COLORS, *TEXTURES, *_SPELLINGS, "orange", "light", "dark", "pale", "bright", "and", "polka")
_BACKGROUND = re.compile(rf"(?<![\w-])(?:(?:{'|'.join(_DESCRIBES)})[\s,-]+)*background\b")


@dataclass
class SaidScene:
    """words: of the objects named. pairs: (word, place). number: of objects, as it is said, else how many
    different ones are named; None of a text that does neither. background: as `Background.name`."""

    words: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    number: int | None = None
    background: str | None = None


@dataclass(frozen=True)
class SceneStatement:
    """One fact of a scene. text: as a sentence. value: what SaidScene must hold."""

    kind: StatementKind
    text: str
    value: str | int | tuple[str, str]

    def said_in(self, said: SaidScene) -> bool:
        """Whether the scene that a text speaks of has this fact."""
        if self.kind == "object":
            return self.value in said.words
        if self.kind == "place":
            return self.value in said.pairs
        return self.value == (said.number if self.kind == "number" else said.background)


def scene_statements(graph: SceneGraph) -> tuple[SceneStatement, ...]:
    """Every object, the place of each, their number, and the background."""
    objects, places = [], []
    for item in graph.objects:
        verb = "are" if item.word in manners().plural else "is"
        objects.append(SceneStatement("object", f"There {verb} {with_article(item.word)}.", item.word))
        sentence = f"The {item.word} {verb} {PLACE_PHRASES[item.place]}."
        places.append(SceneStatement("place", sentence, (item.word, item.place)))
    count = len(graph.objects)
    number = "There is one object." if count == 1 else f"There are {NUMBERS[count]} objects."
    name = graph.background.name
    return (
        *objects,
        *places,
        SceneStatement("number", number, count),
        SceneStatement("background", f"The background is {name}.", name),
    )


def read_of(text: str, graph: SceneGraph) -> SaidScene:
    """read_scene with the words of all object sets and those of the scene, which may be others."""
    return read_scene(text, scene_vocabulary().terms.extended(graph.words))


def read_scene(text: str, terms: Terms) -> SaidScene:
    """What the text says. terms: the words that are looked for in free text."""
    said = SaidScene()
    for _, whole in sentences(" ".join(text.lower().split())):
        sentence = whole.strip()
        if said.number is None:
            said.number = _number(sentence)
        if said.background is None:
            said.background = _background(sentence)
        _read_sentence(_BACKGROUND.sub(" ", sentence), terms, said)
    if said.number is None and said.words:
        said.number = len(said.words)
    return said


def _read_sentence(sentence: str, terms: Terms, said: SaidScene) -> None:
    long = _LONG.fullmatch(sentence)
    if long:
        _add(long["word"], PLACES_OF_PHRASES[long["place"]], terms, said)
        return
    found = parse_short_caption(sentence)
    pairs = [(word, place) for word, place in found if place]
    if pairs and all(_is_said_twice(word) for word, place in found if not place):
        for word, place in pairs:
            _add(word, place, terms, said)
        return
    _read_freely(sentence, terms, said)


def _is_said_twice(piece: str) -> bool:
    """What parse_short_caption leaves over of a pair that stood before."""
    return all(place for _, place in parse_short_caption(piece))


def _add(phrase: str, place: str, terms: Terms, said: SaidScene) -> None:
    """An object by its word, else by the last that its phrase names ("small tiger"), else a new one."""
    known = terms.name_of(phrase)
    names = [known] if known else [mention.name for mention in terms.mentions(phrase)] or [phrase]
    said.words.update(names)
    said.pairs.add((names[-1], place))


def _read_freely(sentence: str, terms: Terms, said: SaidScene) -> None:
    """A place goes to the object next to it: in a sentence that begins with an object to the one before it,
    else to the one after it, and to the other neighbour where that has a place."""
    mentions = terms.mentions(sentence)
    said.words.update(mention.name for mention in mentions)
    marks: list[Mention | re.Match[str]] = sorted([*mentions, *_places(sentence, mentions)], key=_start)
    steps = (-1, 1) if marks and isinstance(marks[0], Mention) else (1, -1)
    placed: set[int] = set()
    for at, mark in enumerate(marks):
        if isinstance(mark, Mention):
            continue
        for beside in (at + step for step in steps):
            other = marks[beside] if 0 <= beside < len(marks) else None
            if isinstance(other, Mention) and beside not in placed:
                placed.add(beside)
                said.pairs.add((other.name, _place(mark)))
                break


def _places(sentence: str, mentions: Sequence[Mention]) -> Iterable[re.Match[str]]:
    """Phrases for places that no object's word is part of (a top hat)."""
    for found in _FREE_PLACE.finditer(sentence):
        if not any(mention.start < found.end() and found.start() < mention.end for mention in mentions):
            yield found


def _start(mark: Mention | re.Match[str]) -> int:
    return mark.start if isinstance(mark, Mention) else mark.start()


def _place(found: re.Match[str]) -> str:
    if found["row"]:
        row = _ROWS.get(found["row"], found["row"])
        return f"{row} {found['corner']}" if found["corner"] else row
    return found["side"] or "middle"


def _number(sentence: str) -> int | None:
    found = _NUMBER.search(sentence)
    if found is None:
        return None
    said = found["number"]
    return int(said) if said.isdecimal() else NUMBER_WORDS.index(said)


def _background(sentence: str) -> str | None:
    """Texture and colour as the words around "background" say them; plain where no texture is said."""
    found = _BACKGROUND.search(sentence)
    if found is None:
        return None
    around = found.group() + re.split(r"[,;.]", sentence[found.end() :])[0]
    words = [_SPELLINGS.get(word, word) for word in re.findall(r"[a-z]+", around)]
    color = next((word for word in words if word in COLORS), None)
    texture = next((word for word in words if word in TEXTURES), "plain")
    return f"{texture} {color}" if color else None
