"""Free answers: numbers, lists of numbers and texts, by MathVista's answer_type and precision.

Source: MathVista (arXiv 2310.02255) and its public evaluation. There an LLM extracts the answer; here rules
do.
A float is compared after both sides were rounded to `precision` decimals. The original cuts what should be an
integer at its point (14.7 counts as 14): here it is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prismcap.configs.errors import DataError
from prismcap.evaluate.scoring import phrases
from prismcap.evaluate.scoring.mentions import NUMBER_WORDS, OptionTexts, is_pronoun
from prismcap.evaluate.scoring.replies import BOX_CLOSE, BOX_OPEN, fold, plain, sentences, visible

AnswerType = Literal["integer", "float", "list", "text"]

_TENS = {
    word: 10 * at
    for at, word in enumerate(
        ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), start=2
    )
}
_VULGAR = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+,\d+(?![\d,])|\d*\.\d+|\d+)"
_NUMBER = re.compile(
    rf"(?<![\w.,/^])(?P<sign>[-−+]\s?)?[$€£¥]?\s?(?P<whole>{_DIGITS})(?:\s*/\s*(?P<under>{_DIGITS})|"
    rf"\s+(?P<over>\d+)/(?P<below>\d+))?(?P<power>(?:e|\s*[×x*]\s*10\s*\^?\s*\{{?)[-−+]?\d+\}}?)?"
    r"(?P<percent>\s*(?:%|per ?cent\b))?(?!\d)(?!(?:st|nd|rd|th)\b)",
    re.I,
)
_LABEL = re.compile(r"\b(?:step|option|question|figure|image|part|equation|eq\.)\s*#?$", re.I)
_UNITS = "|".join(sorted((*NUMBER_WORDS, *_TENS), key=len, reverse=True))
_WORD = re.compile(rf"(?i)(?<![\w-])(?:({'|'.join(_TENS)})[- ])?({_UNITS})(?![\w-])")
_BOX = re.compile(f"{BOX_OPEN}(.*?){BOX_CLOSE}", re.S)
_LIST = re.compile(r"[\[(]\s*[^\[\]()]*\d[^\[\]()]*[\])]")
_SAID = re.compile(r"(?i)\b(?:is|are|was|were|equals|says|reads)\b:?|[:=]")


@dataclass(frozen=True)
class Number:
    """percent: written with a percent sign, so 60 may mean 0.6."""

    value: float
    percent: bool = False


@dataclass(frozen=True)
class FreeRules:
    """How a free answer is compared. precision: decimals of a float. unit: as the question has it, or ""."""

    answer_type: AnswerType
    precision: int
    unit: str = ""


def free_rules(rules: Mapping[str, str], answer: str, question_id: str) -> FreeRules:
    """MathVista's columns; where they are missing or empty, what the right answer looks like.

    Raises DataError naming the question, the key, the value and what would be right.
    """
    given = {
        key: value.strip() for key, value in rules.items() if value.strip().lower() not in ("", "nan", "none")
    }
    answer_type = given.get("answer_type") or _type_of(answer)
    if answer_type not in ("integer", "float", "list", "text"):
        raise DataError(
            f"question {question_id}: answer_type {answer_type!r}: must be integer, float, list or text"
        )
    shown = re.search(r"\.(\d+)", answer)
    precision = given.get("precision", str(len(shown.group(1)) if shown else 0))
    if not re.fullmatch(r"\d+(?:\.0+)?", precision):
        raise DataError(
            f"question {question_id}: precision {precision!r}: must be a number of decimals, 0 or more"
        )
    checked: AnswerType = answer_type  # type: ignore[assignment]
    if checked != "text" and not parse_numbers(answer):
        raise DataError(
            f"question {question_id}: answer {answer!r} is no number, but answer_type is {checked}: "
            "correct one of them, or set answer_type to text"
        )
    return FreeRules(checked, int(float(precision)), given.get("unit", ""))


def parse_numbers(text: str) -> list[Number]:
    """All numbers of a text: thousands separators, decimal commas, fractions, percents, powers of ten; number
    words where there are no digits. Digits of names (H2O), ordinals and labels ("Step 1") are none."""
    text = plain(_VULGAR.sub(" ", text))
    found = [
        _number(match)
        for match in _NUMBER.finditer(text)
        if not _LABEL.search(text[: match.start()].rstrip())
    ]
    numbers = [number for number in found if number is not None]
    return numbers or [
        Number(_TENS.get((match.group(1) or "").lower(), 0) + _word_value(match.group(2).lower()))
        for match in _WORD.finditer(text)
        if not (match.group(2).lower() == "one" and is_pronoun(text.lower(), match))
    ]


@dataclass(frozen=True)
class FreeAnswer:
    """extracted: the answer in one spelling. how: `boxed`, `answer_form`, `only`, `conclusion`, `unique`,
    `last_sentence`, `contained`, or `unmatched`."""

    right: bool
    extracted: str | None
    how: str


def score_free(reply: str, answer: str, rules: FreeRules) -> FreeAnswer:
    """Whether the reply's answer is the right one. An ambiguous reply (several numbers that no rule tells
    apart) is unmatched."""
    if rules.answer_type == "text":
        return _score_text(reply, answer)
    wanted = parse_numbers(answer)
    for how, part in _candidates(reply):
        said = parse_numbers(_bracketed(part) if rules.answer_type == "list" else part)
        if rules.answer_type != "list":
            distinct = set(said)
            if len(distinct) > 1 and how in ("boxed", "conclusion", "last_sentence", "answer_form"):
                said = _after_equals(part) or said
                distinct = set(said)
            if len(distinct) > 1:
                if how in ("boxed", "answer_form"):
                    return FreeAnswer(False, None, "unmatched")
                continue
            said = said[:1]
        if said:
            right = len(said) == len(wanted) and all(
                _equal(one, other, rules) for one, other in zip(said, wanted, strict=True)
            )
            return FreeAnswer(right, _spelled(said, rules), how)
    return FreeAnswer(False, None, "unmatched")


def _candidates(reply: str) -> list[tuple[str, str]]:
    """Where the answer may stand, most binding first; of several such places the last."""
    text = plain(_VULGAR.sub(" ", visible(reply)))
    whole = [sentence for _, sentence in sentences(text)]
    found = [("boxed", box.group(1)) for box in list(_BOX.finditer(text))[-1:]]
    forms = list(phrases.ANSWER_FORM.finditer(text))
    found += [("answer_form", _sentence_at(text, form.end())) for form in forms[-1:]]
    if len(whole) == 1:
        found.append(("only", whole[0]))
    words = list(phrases.CONCLUSIVE.finditer(text))
    found += [("conclusion", _sentence_at(text, word.end())) for word in words[-1:]]
    found.append(("unique", text))
    numbered = [sentence for sentence in whole if parse_numbers(sentence)]
    return found + [("last_sentence", sentence) for sentence in numbered[-1:]]


def _score_text(reply: str, answer: str) -> FreeAnswer:
    wanted = OptionTexts((answer,))
    first: tuple[str, str] | None = None
    for how, part in _candidates(reply):
        if how in ("conclusion", "unique", "last_sentence"):
            continue
        spelled = fold(part).strip(" .,;:!?()[]")
        first = first or (how, spelled)
        if spelled and (wanted.exact(part) or _same_number(part, answer)):
            return FreeAnswer(True, fold(answer), how)
    if first is None or not first[1]:
        return FreeAnswer(False, None, "unmatched")
    said = _SAID.search(first[1])
    if said and len(wanted.named(first[1][said.end() :])) == 1 and not re.search(r"\bor\b", first[1]):
        return FreeAnswer(True, fold(answer), "contained")
    return FreeAnswer(False, first[1], first[0])


def _same_number(part: str, answer: str) -> bool:
    """Of texts that are nothing but a number: "1,500" is "1500"."""
    one, other = (_NUMBER.fullmatch(plain(text).strip(" .")) for text in (part, answer))
    return one is not None and other is not None and _number(one) == _number(other)


def _number(match: re.Match[str]) -> Number | None:
    value = _digits(match["whole"])
    if match["under"] or match["below"]:
        under = _digits(match["under"] or match["below"])
        if under == 0:
            return None
        value = value / under if match["under"] else value + _digits(match["over"]) / under
    if match["power"]:
        exponent = int(
            re.sub(r"[\s{}]", "", re.split(r"(?i)e|10\s*\^?", match["power"])[-1]).replace("−", "-")
        )
        value = value * 10.0**exponent if abs(exponent) <= 300 else math.inf
    if (match["sign"] or "").strip() in ("-", "−"):
        value = -value
    return Number(value, percent=bool(match["percent"]))


def _digits(text: str) -> float:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return float(text.replace(",", ""))
    return float(text.replace(",", "."))


def _word_value(word: str) -> int:
    return _TENS[word] if word in _TENS else NUMBER_WORDS.index(word)


def _sentence_at(text: str, start: int) -> str:
    found = sentences(text[start:])
    return found[0][1] if found else ""


def _after_equals(part: str) -> list[Number]:
    tail = re.split(r"=|≈", part)
    return parse_numbers(tail[-1]) if len(tail) > 1 else []


def _bracketed(part: str) -> str:
    lists = list(_LIST.finditer(part))
    # in a list a comma separates: "[2007,2008]" holds two numbers
    return re.sub(r",(?=\d)", ", ", lists[-1].group()[1:-1]) if lists else part


def _equal(said: Number, wanted: Number, rules: FreeRules) -> bool:
    values = [said.value]
    if said.percent and not wanted.percent and rules.unit.lower() not in ("%", "percent", "percentage"):
        values.append(said.value / 100)
    if rules.answer_type == "integer":
        return any(math.isclose(value, wanted.value, rel_tol=1e-9, abs_tol=1e-9) for value in values)
    return any(
        math.isfinite(value) and round(value, rules.precision) == round(wanted.value, rules.precision)
        for value in values
    )


def _spelled(said: list[Number], rules: FreeRules) -> str:
    texts = [f"{number.value:.10g}" + ("%" if number.percent else "") for number in said]
    return f"[{', '.join(texts)}]" if rules.answer_type == "list" else texts[0]


def _type_of(answer: str) -> str:
    if _LIST.fullmatch(answer.strip()):
        return "list"
    number = _NUMBER.fullmatch(answer.strip())
    if number is None:
        return "text"
    return "integer" if re.fullmatch(r"[-−+]?[\d,]+", answer.strip()) else "float"
