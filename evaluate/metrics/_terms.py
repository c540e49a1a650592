"""Where a text names one of a list of objects: whole words, any number, the longest name first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from prismcap.configs.errors import DataError
from prismcap.evaluate.reasoners.keyword import number_forms

Phrase = tuple[str, ...]
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_POSSESSIVE = re.compile(r"['’]s$")
_GAP = re.compile(r"[\s'’-]*")  # between words of one name: "hot-dog", not "hot. Dog"
# endings of singular and plural that no rule gives; "fireman" and "bookshelf" follow the last word
_IRREGULAR = (
    *(("man", "men"), ("child", "children"), ("person", "people"), ("foot", "feet"), ("tooth", "teeth")),
    *(("goose", "geese"), ("mouse", "mice"), ("ox", "oxen"), ("knife", "knives"), ("leaf", "leaves")),
    *(("shelf", "shelves"), ("wolf", "wolves"), ("calf", "calves"), ("loaf", "loaves")),
    ("scarf", "scarves"),
)
_WITH_OES = re.compile(r"[^aeiou]o$")  # potatoes beside pianos


@dataclass(frozen=True)
class Mention:
    """name: of the object. start, end: where in the text, in characters."""

    name: str
    start: int
    end: int


class Terms:
    """Names of objects with their other spellings, made ready for searching.

    Of names that begin at one word the longest is meant, and what lies within it is not named by it: a "hot
    dog" is no dog. Negation is not read: "no dog" names a dog.
    """

    def __init__(self, spellings: Mapping[str, Iterable[str]], nothing: Iterable[str] = ()) -> None:
        """nothing: phrases that name none of the objects, though words within them do ("train station").

        Raises DataError for a spelling without a word, and for one of two names.
        """
        self._spellings = {name: tuple(phrases) for name, phrases in spellings.items()}
        self._nothing = tuple(nothing)
        exact: dict[Phrase, str | None] = {}
        for name, phrases in self._spellings.items():
            for phrase in (name, *phrases):
                _add(exact, phrase, name)
        for phrase in self._nothing:
            _add(exact, phrase, None)
        self._forms = dict(exact)
        for key, found in exact.items():
            for last in sorted(_forms(key[-1])):
                # a form that is a spelling of its own keeps its meaning
                self._forms.setdefault((*key[:-1], last), found)
        self._lengths = sorted({len(key) for key in self._forms}, reverse=True)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._spellings)

    def name_of(self, phrase: str) -> str | None:
        """The object that the whole phrase names."""
        return self._forms.get(_phrase(phrase))

    def mentions(self, text: str) -> list[Mention]:
        """Every one, in the order of the text."""
        tokens = list(_TOKEN.finditer(text))
        said = [_bare(token.group()) for token in tokens]
        joined = [
            bool(_GAP.fullmatch(text, before.end(), after.start())) for before, after in pairwise(tokens)
        ]
        free = [True] * len(said)
        found: list[Mention] = []
        for length in self._lengths:
            for start in range(len(said) - length + 1):
                end = start + length
                key = tuple(said[start:end])
                if key in self._forms and all(free[start:end]) and all(joined[start : end - 1]):
                    free[start:end] = [False] * length
                    name = self._forms[key]
                    if name is not None:
                        found.append(Mention(name, tokens[start].start(), tokens[end - 1].end()))
        return sorted(found, key=lambda mention: mention.start)

    def extended(self, names: Iterable[str]) -> Terms:
        """With these names too, as far as they are not known."""
        more = {name: () for name in names if self.name_of(name) is None}
        if not more:
            return self
        keys = set(map(_phrase, more))
        return Terms({**self._spellings, **more}, [one for one in self._nothing if _phrase(one) not in keys])


def _add(exact: dict[Phrase, str | None], phrase: str, name: str | None) -> None:
    key = _phrase(phrase)
    if not key:
        raise DataError(f"{phrase!r} of {name!r} holds no word")
    if key in exact and exact[key] != name:
        both = " and ".join(repr(one or "(none)") for one in (exact[key], name))
        raise DataError(f"{phrase!r} stands below {both}: leave it to one of them")
    exact[key] = name


def _phrase(text: str) -> Phrase:
    return tuple(_bare(token) for token in _TOKEN.findall(text))


def _bare(token: str) -> str:
    return _POSSESSIVE.sub("", token.casefold())


def _forms(word: str) -> set[str]:
    """Singular and plural of the word."""
    forms = set(number_forms(word))
    for singular, plural in _IRREGULAR:
        for one, other in ((singular, plural), (plural, singular)):
            if word.endswith(one):
                forms.add(word[: -len(one)] + other)
    if _WITH_OES.search(word):
        forms.add(f"{word}es")
    return forms
