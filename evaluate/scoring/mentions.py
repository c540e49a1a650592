"""Where a text names one of the options by its own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from prismcap.evaluate.benchmarks._contract import LETTERS
from prismcap.evaluate.scoring.replies import fold, plain

ARTICLES = r"(?:a|an|the|der|die|das|ein|eine|einen|le|la|les|l'|un|une|el|los|las|una|il|lo|o|os|as|um|uma)"
NUMBER_WORDS = (
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)

_UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # scripts without spaces between words
_LEADING_ARTICLE = re.compile(rf"^{ARTICLES}\s+(?=\S)")
# words that take back what follows them, and how far they reach
_NEGATED_BEFORE = re.compile(
    r"(?:\b(?:not(?! only)|no|never|nor|neither|without|cannot|rather than|instead of|unlike|"
    r"kein|keine|keinen|keiner|nicht|pas|ni|aucun|aucune|sin|sem|não|non|ningún|nessun|nessuna|не|нет)\b|n't\b)"
    r"(?:\s+(?!but\b|sondern\b|mais\b|sino\b)[\w']+){0,3}\s*$|(?:不是|没有|并非|并不是|沒有)\s*$"
)
_NEGATED_AFTER = re.compile(
    r"^\s*(?:(?:is|are|was|were|can be|could be|must be)\s+)?(?:(?:not(?! only)|wrong|incorrect|excluded|"
    r"eliminated|ruled out|absent|missing)\b|(?:(?:is|are|was|were|do|does|did|ca|could|would)n't\b))|"
    r"^\s*(?:does|do|did|can|could|would)\s+not\b|^\s*cannot\b|^(?:ではな|じゃな|不对|不正确|是错)"
)
_JOINED_ON = re.compile(rf"(?:,?\s*(or|nor)|,)\s+(?:{ARTICLES}\s+)?")
_PRONOUN_ONE = re.compile(r"\b(?:the|this|that|no|another|which|each|every|other|any|some)\s*$")


@dataclass(frozen=True)
class Mention:
    """letter: of the option. start, end: in the folded text. negated: the text says it is not this one."""

    letter: str
    start: int
    end: int
    negated: bool


class OptionTexts:
    """The options' texts, made ready for searching. Texts that are one of the option letters are left out: a
    letter in a reply means the letter."""

    def __init__(self, options: Sequence[str]) -> None:
        letters = LETTERS[: len(options)]
        self.folded = {
            letter: _bare(fold(plain(text))) for letter, text in zip(letters, options, strict=False)
        }
        numeric = all(re.fullmatch(r"-?\d+", text) for text in self.folded.values())
        self._patterns = {
            letter: _pattern(text, numeric)
            for letter, text in self.folded.items()
            if text and not (len(text) == 1 and text.upper() in letters)
        }

    def exact(self, text: str) -> str | None:
        """The letter of the only option that `text` is, articles and punctuation aside."""
        said = _bare(fold(text).strip(" .,;:!?()[]'"))
        found = [letter for letter in self._patterns if self._patterns[letter].fullmatch(said)]
        return found[0] if len(found) == 1 else None

    def mentions(self, text: str) -> list[Mention]:
        """In order of their place; a mention within a longer option's mention is none."""
        folded = fold(text)
        spans = [
            (match.start(), match.end(), letter)
            for letter, pattern in self._patterns.items()
            for match in pattern.finditer(folded)
            if not (match.group() == "one" and is_pronoun(folded, match))
        ]
        longest = [
            span
            for span in spans
            if not any(o[0] <= span[0] and span[1] <= o[1] and o[1] - o[0] > span[1] - span[0] for o in spans)
        ]
        return _negations_joined(
            folded, [Mention(x, s, e, _negated(folded, s, e)) for s, e, x in sorted(longest)]
        )

    def named(self, text: str) -> set[str]:
        """Letters of the options that the text names and does not negate."""
        return {mention.letter for mention in self.mentions(text) if not mention.negated}


def _bare(folded: str) -> str:
    return _LEADING_ARTICLE.sub("", folded.strip(" .;:"))


def _pattern(text: str, numeric: bool) -> re.Pattern[str]:
    """As whole words; a number is no part of a longer number."""
    before = "" if re.match(_UNSPACED, text) else r"(?<![\w])(?<!\d[.,/])"
    if re.match(r"[\d]", text):
        before = r"(?<![\w/-])(?<!\d[.,])"
    after = "" if re.search(_UNSPACED + "$", text) else r"(?![\w])(?![.,/]\d)"
    body = re.sub(r"(?:\\\s)+|\s+", r"\\s+", re.escape(text))
    if numeric and text.isdigit() and int(text) < len(NUMBER_WORDS):
        body = rf"(?:{body}|{NUMBER_WORDS[int(text)]})"
    return re.compile(before + body + after)


def is_pronoun(folded: str, match: re.Match[str]) -> bool:
    return bool(_PRONOUN_ONE.search(folded[: match.start()]) or re.match(r"\s+of\b", folded[match.end() :]))


def _negations_joined(folded: str, mentions: list[Mention]) -> list[Mention]:
    """ "not a cat, a dog or a bird": what "or" joins to a negated mention is negated too."""
    marked: list[Mention] = []
    for position, mention in enumerate(mentions):
        before = marked[-1] if marked else None
        if before is not None and before.negated and not mention.negated:
            later = [before, *mentions[position:]]
            for one, other in pairwise(later):
                joined = _JOINED_ON.fullmatch(folded, one.end, other.start)
                if not joined:
                    break
                if joined.group(1):
                    mention = replace(mention, negated=True)
                    break
        marked.append(mention)
    return marked


def _negated(folded: str, start: int, end: int) -> bool:
    before = re.split(r"[,;:.!?()]", folded[:start])[-1]
    return bool(_NEGATED_BEFORE.search(before) or _NEGATED_AFTER.match(folded[end:]))
