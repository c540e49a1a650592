"""The texts of a scene graph: captions, questions and their exact answers, and how they are scored.

Every text is a pure function of the graph (and, for questions, of what is asked), so each has one
right answer. A word is said with an article that the word alone decides, so that a text can be
read back: `parse_short_caption(short_caption(graph)) == graph.pairs()`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prismcap.data.scenes.graph import MAX_OBJECTS, Place, SceneGraph
from prismcap.data.scenes.words import manners, with_article

Kind = Literal["short", "long", "place", "count", "yes_no"]
KINDS: tuple[Kind, ...] = ("short", "long", "place", "count", "yes_no")
CAPTION_KINDS: tuple[Kind, ...] = ("short", "long")

SHORT_PROMPT = "Describe the picture."
LONG_PROMPT = "Describe the picture in detail."

PLACE_PHRASES: dict[Place, str] = {
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "top left": "at the top left",
    "top right": "at the top right",
    "bottom left": "at the bottom left",
    "bottom right": "at the bottom right",
}
PLACES_OF_PHRASES = {phrase: place for place, phrase in PLACE_PHRASES.items()}
# inside a regular expression; longest first: "at the top" also opens "at the top left"
ANY_PLACE_PHRASE = "|".join(sorted(PLACES_OF_PHRASES, key=len, reverse=True))
NUMBERS = ("zero", "one", "two", "three", "four")
CATEGORY_PLURALS = {
    "animal": "animals",
    "food": "things to eat",
    "plant": "plants",
    "vehicle": "vehicles",
    "building": "buildings",
    "clothes": "things to wear",
    "tool": "tools",
    "instrument": "musical instruments",
}


@dataclass(frozen=True)
class Text:
    """One exchange about a scene. `asked` is the word, place or category that a question names."""

    kind: Kind
    prompt: str
    answer: str
    asked: str = ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _listing(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def short_caption(graph: SceneGraph) -> str:
    """`A tiger on the left and a hammer on the right.`"""
    parts = [f"{with_article(item.word)} {PLACE_PHRASES[item.place]}" for item in graph.objects]
    return _sentence(_listing(parts))


def long_caption(graph: SceneGraph) -> str:
    """Number and background first, then one sentence for each object with its place and size."""
    count = len(graph.objects)
    opening = "is one object" if count == 1 else f"are {NUMBERS[count]} objects"
    sentences = [f"There {opening} on {with_article(graph.background.name)} background."]
    for item in graph.objects:
        thing = f"{item.size} {item.word}"
        if item.word in manners().plural:
            said = f"are some {thing}"
        else:
            said = f"is {'some' if item.word in manners().mass else 'a'} {thing}"
        sentences.append(_sentence(f"{PLACE_PHRASES[item.place]} {said}"))
    return " ".join(sentences)


def caption_text(graph: SceneGraph, kind: Kind) -> Text:
    """The short or the long caption with its prompt."""
    if kind == "short":
        return Text("short", SHORT_PROMPT, short_caption(graph))
    return Text("long", LONG_PROMPT, long_caption(graph))


def _place_prompt(place: Place) -> str:
    return f"What is {PLACE_PHRASES[place]}?"


def _count_prompt(category: str | None) -> str:
    return f"How many {'objects' if category is None else CATEGORY_PLURALS[category]} are there?"


def place_question(graph: SceneGraph, place: Place) -> Text:
    """`What is on the left?` -> `A tiger.` Raises KeyError where nothing is."""
    answer = _sentence(with_article(graph.at(place).word))
    return Text("place", _place_prompt(place), answer, asked=place)


def count_question(graph: SceneGraph, category: str | None) -> Text:
    """`How many animals are there?` -> `Two.`; without a category all objects are counted."""
    count = sum(category in (None, item.category) for item in graph.objects)
    return Text("count", _count_prompt(category), _sentence(NUMBERS[count]), asked=category or "object")


def yes_no_question(graph: SceneGraph, word: str) -> Text:
    """`Is there a hammer?` -> `Yes.` or `No.`"""
    if word in manners().plural:
        prompt = f"Are there any {word}?"
    else:
        prompt = f"Is there {'any ' + word if word in manners().mass else with_article(word)}?"
    return Text("yes_no", prompt, "Yes." if word in graph.words else "No.", asked=word)


_PLACE_PROMPTS = {_place_prompt(place): place for place in PLACE_PHRASES}
_COUNT_PROMPTS = {_count_prompt(category): category for category in (None, *CATEGORY_PLURALS)}


def ask_again(prompt: str, graph: SceneGraph) -> str:
    """What another scene answers to a question for a place or a number; "" where nothing is at the place.

    Raises KeyError for a prompt that is none of these questions.
    """
    if prompt in _COUNT_PROMPTS:
        return count_question(graph, _COUNT_PROMPTS[prompt]).answer
    place = _PLACE_PROMPTS[prompt]
    return place_question(graph, place).answer if place in {item.place for item in graph.objects} else ""


_ITEM = re.compile(rf"(?:an?|some)\s+(?P<word>[^,.?!]+?)\s+(?P<place>{ANY_PLACE_PHRASE})(?=[\s,.]|$)")
_SEPARATORS = re.compile(r"(?:[\s,.]|\band\b)+")


def parse_short_caption(text: str) -> frozenset[tuple[str, str]]:
    """The (word, place) pairs that a caption says, for comparison with `SceneGraph.pairs()`.

    Case, blanks and the final full stop do not matter. Whatever is not understood, and a pair said
    twice, is kept as (text, ""): the set then differs from every graph's, while the pairs that
    were understood can still be counted one by one.
    """
    rest = " ".join(text.lower().split())
    found: set[tuple[str, str]] = set()
    leftover: list[str] = []
    position = 0
    for match in _ITEM.finditer(rest):
        leftover.append(rest[position : match.start()])
        position = match.end()
        pair = (match["word"], PLACES_OF_PHRASES[match["place"]])
        if pair in found:
            leftover.append(match[0])
        found.add(pair)
    leftover.append(rest[position:])
    for piece in leftover:
        piece = _SEPARATORS.sub(" ", piece).strip()
        if piece:
            found.add((piece, ""))
    return frozenset(found)


def normalise_answer(text: str) -> str:
    """A short answer as it is compared: lower case, no article, no final mark, digits as words."""
    answer = " ".join(text.lower().split()).strip(" .!?\"'")
    answer = re.sub(r"^(?:an?|some|the)\s+", "", answer)
    if answer.isdecimal() and int(answer) <= MAX_OBJECTS:
        answer = NUMBERS[int(answer)]
    return "zero" if answer in ("none", "no objects") else answer


def answer_right(given: str, expected: str) -> bool:
    """Whether an answer to a question is exactly right after normalisation."""
    return normalise_answer(given) == normalise_answer(expected)
