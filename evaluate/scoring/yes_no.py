"""Whether a free reply says yes or no."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from prismcap.evaluate.benchmarks._contract import LETTERS
from prismcap.evaluate.scoring import phrases
from prismcap.evaluate.scoring.conclusions import (
    CHOSEN,
    HINTED,
    STATED,
    UNMATCHED,
    Conclusion,
    Extraction,
    hypothetical,
    settle,
)
from prismcap.evaluate.scoring.refusal import after_refusals
from prismcap.evaluate.scoring.replies import BOX_CLOSE, BOX_OPEN, fold, plain, visible

YES, NO = "yes", "no"
_WORDS = {
    YES: r"(?:yes|yeah|yep|correct|ja|oui|sí|si|sim|sì|да|是的?|有的?|对|はい|예|네)",
    NO: r"(?:no|nope|not really|not at all|nein|non|não|нет|不是|没有|不|否|いいえ|いえ|아니요)",
}
# a word that stands alone: "no dog" is a determiner, "no, …" an answer
_ENDS = (
    r"(?=\s*(?:[.,;:!)\]\"'。，！、\n\ue001—–]|-\s|$|because\b|since\b|as\b|weil\b|car\b|porque\b|perché\b))"
)
_ALONE = {value: re.compile(rf"(?i){words}{_ENDS}") for value, words in _WORDS.items()}
_BEGINS = re.compile(r"[\s:\"'“(\[\ue000]*")
_DELIMITED = re.compile(
    r"(?i)(?:^|[.,:;!?—–(\n，。：]|\s-\s|\b(?:so|thus|therefore|hence|think|believe|say)\b|因此|所以)[\s\"'(]*"
)
_EXISTENCE = re.compile(
    r"^\W*(?:(?:is|are) there\b|(?:do|can) you see\b|does (?:the|this) (?:image|picture|photo|scene) "
    r"(?:show|contain|include|have|depict|feature)\b)",
    re.I,
)
_ABSENT = re.compile(
    r"\b(?:there (?:is|are) (?:no|not)\b|there (?:isn't|aren't)\b|i (?:do not|don't) see (?:a|an|any)\b|"
    r"(?:image|picture|photo|scene) (?:does not|doesn't) (?:show|contain|include|have|depict|feature)\b)"
    r"(?! (?:enough|sufficient|information|details|indication|mention|evidence|way|doubt)\b)",
    re.I,
)
_PRESENT = re.compile(
    r"\b(?:there (?:is|are) (?!no\b|not\b|nothing\b)|there's (?!no\b|not\b|nothing\b)|"
    r"i (?:can )?see (?!no\b|any\b|nothing\b)|"
    r"(?:image|picture|photo|scene) (?:shows|contains|includes|has|depicts|features)\b)",
    re.I,
)


def yes_no_letters(options: Sequence[str]) -> dict[str, str]:
    """ "yes" and "no" -> letter, of two options that say just that; empty for any other options."""
    folded = [fold(option).strip(" .") for option in options]
    if sorted(folded) != [NO, YES]:
        return {}
    return dict(zip(folded, LETTERS, strict=False))


def extract_yes_no(reply: str, question: str = "") -> Extraction:
    """`yes`, `no` or None. how: `boxed`, `answer_form`, `leading`, `alone`; `existence` where the question
    asks whether something is there and a sentence says that it is or is not; else `unmatched`."""
    text = plain(visible(reply))
    found = settle(text, _conclusions(text))
    if found is not None:
        return found
    kept = after_refusals(text)
    if _EXISTENCE.search(question):
        looked = ((YES, _PRESENT, kept), (NO, _ABSENT, text))
        said = {value for value, form, part in looked if form.search(part)}
        if len(said) == 1:
            return Extraction(said.pop(), "existence", concluded=True)
    return UNMATCHED


def _conclusions(text: str) -> Iterator[Conclusion]:
    for box in re.finditer(f"{BOX_OPEN}(.*?){BOX_CLOSE}", text, re.S):
        values = frozenset(value for value in _WORDS if _ALONE[value].match(box.group(1).strip()))
        yield Conclusion(box.start(), box.end(), values, "boxed", STATED)
    for form in phrases.ANSWER_FORM.finditer(text):
        yield from _at(text, form.end(), form.start(), "answer_form", STATED)
    yield from _at(text, 0, 0, "leading", CHOSEN)
    both = re.search(r"(?i)\byes and no\b|\byes or no\b", text)
    if both:
        yield Conclusion(both.start(), both.end(), frozenset(_WORDS), "alone", CHOSEN)
    for place in _DELIMITED.finditer(text):
        strength = CHOSEN if re.search(r"\w|[因所]", place.group()) else HINTED
        yield from _at(text, place.end(), place.start(), "alone", strength)


def _at(text: str, at: int, start: int, how: str, strength: int) -> Iterator[Conclusion]:
    begin = _BEGINS.match(text, at)
    place = begin.end() if begin else at
    for value, alone in _ALONE.items():
        word = alone.match(text, place)
        if word and not hypothetical(text, place, word.end()):
            yield Conclusion(start, word.end(), frozenset({value}), how, strength)
