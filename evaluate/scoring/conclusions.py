"""Which of a reply's conclusions holds: the strongest, and of equals the one put in the others' place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# how much a form of words commits to its value
STATED, CHOSEN, HINTED = 3, 2, 1

# takes back whatever was concluded before
_RETRACTS = re.compile(
    r"\b(?:wait|actually|on second thoughts?|scratch that|(?:i )?take that back|correct (?:that|this|myself)|"
    r"looking again|let me (?:re|double|correct|fix)|i (?:made|was) (?:a )?(?:mistake|mistaken|wrong)|hmm)\b|"
    r"(?:^|[.!?\n]\s*)no[,:.]|等等|不对|其实|实际上|いや|"
    r"doch nicht|moment|attends|en fait|en realidad|на самом деле",
    re.I,
)
# puts a new conclusion in the place of one of the same strength
_CONCLUDES = re.compile(
    r"\b(?:however|but|so|therefore|thus|hence|consequently|in conclusion|final(?:ly)?|overall|daher|deshalb|"
    r"aber|donc|mais|por lo tanto|portanto|quindi|pero|mas|итак|поэтому)\b|因此|所以|但是|故|"
    r"したがって|よって",
    re.I,
)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|no|actually|hmm|sorry)\b[^\n]{0,20}?\b(?:that|this|it)(?:'s| is| was) "
    r"(?:wrong|not right|incorrect|not correct|a mistake)|\b(?:scratch that|i take that back)\b",
    re.I,
)
_CONDITION = re.compile(r"\bif\b(?! (?:i|we) (?:had|have|must|were|was) (?:to )?)(?! forced)", re.I)


@dataclass(frozen=True)
class Conclusion:
    """values: what was concluded; several are ambiguous, none is something that cannot be an answer.

    start, end: where in the reply. how: the rule's name."""

    start: int
    end: int
    values: frozenset[str]
    how: str
    strength: int


@dataclass(frozen=True)
class Extraction:
    """What was read from a reply. value: None when no rule matched or the reply is ambiguous.

    how: the rule. concluded: the reply commits itself, if only to something ambiguous: it is no refusal."""

    value: str | None
    how: str
    concluded: bool


UNMATCHED = Extraction(None, "unmatched", concluded=False)


def hypothetical(text: str, start: int, end: int) -> bool:
    """Whether what stands at [start, end) is asked or supposed, not concluded."""
    before = re.split(r"[.!?;\n]", text[:start])[-1]
    asked = re.match(r"[\s)\]\"']*\?", text[end:])
    return bool(asked or _CONDITION.search(before))


def settle(text: str, conclusions: Iterable[Conclusion]) -> Extraction | None:
    """None when there is no conclusion at all. Two that disagree, without a word that says which one holds,
    are ambiguous."""
    held: Conclusion | None = None
    for new in sorted(conclusions, key=lambda one: (one.start, one.end)):
        held = new if held is None else _after(text, held, new)
    if held is None:
        return None
    if len(held.values) != 1 or _TAKEN_BACK.search(text, held.end):
        return Extraction(None, "unmatched", concluded=True)
    return Extraction(next(iter(held.values)), held.how, concluded=True)


def _after(text: str, held: Conclusion, new: Conclusion) -> Conclusion:
    if new.values == held.values:
        return new if new.strength >= held.strength else _extended(held, new.end)
    between = text[held.end : new.end]
    if _RETRACTS.search(between):
        return new
    if new.strength != held.strength:
        return new if new.strength > held.strength else held
    if _CONCLUDES.search(between):
        return new
    return Conclusion(held.start, new.end, held.values | new.values, held.how, held.strength)


def _extended(held: Conclusion, end: int) -> Conclusion:
    return Conclusion(held.start, max(held.end, end), held.values, held.how, held.strength)
