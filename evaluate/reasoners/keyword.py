"""A rule that reads words: it answers only if exactly one option's words occur in the description.

It infers nothing, so what it gets right the description said. It knows no negation: "no tiger" says tiger.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from prismcap.configs.schema.base import Section
from prismcap.evaluate.benchmarks._contract import LETTERS, Question
from prismcap.evaluate.reasoners._contract import ReasonerContext
from prismcap.evaluate.reasoners._rules import CANNOT_TELL, RuleReasoner

Words = tuple[str, ...]
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ARTICLES = frozenset({"a", "an", "the", "some", "any"})
# `Is there a hammer?` of the scenes, `Is there a dog in the image?` of POPE
_EXISTS = re.compile(
    r"(?:is|are) there (?P<asked>[^?.,;:]+?)"
    r"(?: (?:in|on|anywhere in) (?:the|this) (?:image|picture|photo|scene))?\s*\?",
    re.IGNORECASE,
)
# in the plural another thing than several of the singular
_OWN_MEANING = frozenset(
    {"arms", "briefs", "clothes", "customs", "glasses", "goods", "grounds"}
    | {"means", "news", "pants", "shorts", "spectacles", "tights", "woods"}
)
_SIBILANTS = ("s", "x", "z", "ch", "sh")


class Options(Section):
    """None: it is one rule."""


def build(options: Options, context: ReasonerContext) -> RuleReasoner:  # noqa: ARG001
    return RuleReasoner(identity="keyword", rule=read)


def read(question: Question, description: str | None) -> str:
    """The letter of the one option that the description names, else a refusal; without one a refusal.

    yes_no: whether the description names what the question asks for; a refusal where the question is not of
    the form `Is there …?`. Free answers are refused.
    """
    if description is None:
        return CANNOT_TELL
    if question.kind == "yes_no":
        asked = _EXISTS.search(question.text)
        wanted = words(asked["asked"]) if asked else ()
        if not wanted:
            return CANNOT_TELL
        return "Yes." if named([wanted], description) else "No."
    found = named([words(option) for option in question.options], description)
    return LETTERS[found.pop()] if len(found) == 1 else CANNOT_TELL


def words(text: str) -> Words:
    """In lower case, without articles at the beginning."""
    found = _WORD.findall(text.casefold())
    while found and found[0] in _ARTICLES:
        found.pop(0)
    return tuple(found)


def named(options: Sequence[Words], description: str) -> set[int]:
    """Positions of the options whose words stand in the description, whole and next to each other.

    Singular and plural are one, unless both are options. Of options that begin at one word the longest is
    meant, and what lies within it is not named by it: "a tennis ball" names no ball.
    """
    said = _WORD.findall(description.casefold())
    written = {option for option in options if option}
    forms: dict[Words, set[int]] = {}
    for position, option in enumerate(options):
        for last in number_forms(option[-1]) if option else ():
            form = (*option[:-1], last)
            if form == option or form not in written:
                forms.setdefault(form, set()).add(position)
    lengths = sorted({len(form) for form in forms}, reverse=True)
    free = [True] * len(said)
    found: set[int] = set()
    for length in lengths:
        for start in range(len(said) - length + 1):
            here = slice(start, start + length)
            if all(free[here]) and (named_here := forms.get(tuple(said[here]))):
                found |= named_here
                free[here] = [False] * length
    return found


def number_forms(word: str) -> set[str]:
    """The word with its regular plural and singulars, as far as they mean the same."""
    longest_ending = 3
    singulars = {word[:-1], word[:-2], f"{word[:-3]}y"} if len(word) > longest_ending else set()
    forms = {_plural(word), *(one for one in singulars if len(one) > 1 and _plural(one) == word)}
    if word in _OWN_MEANING or not word.isalpha():
        return {word}
    return {word} | {form for form in forms if form not in _OWN_MEANING}


def _plural(word: str) -> str:
    if word.endswith("y") and word[-2:-1] not in ("", *"aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(_SIBILANTS) else f"{word}s"
