"""What a reasoner wrote for a query-specific instruction, made fit to follow "pay attention to", or rejected.

The original joins whatever comes back: echoes of the prompt's examples, whole sentences and the question's
options then stand in the instruction (280 of 1,500 parts of one LLM were echoes).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.clients.thoughts import without_thoughts
from prismcap.evaluate.prism.instructions import FEW_SHOT

MAX_WORDS = 60  # an instruction, not an answer; the paper's parts have 4 to 12 words
_ECHO_OVERLAP = 0.8  # of the words of part and example together


@dataclass(frozen=True)
class Part:
    """What a reasoner added for one question, or why the generic text stands alone."""

    text: str | None
    fallback: str | None = None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


_MARKS = "\"'`*_“”‘’«» \t"
_NEXT_PAIR = re.compile(r"\n\s*(question|q)\s*:", re.IGNORECASE)
_COURTESY = re.compile(r"^(sure|certainly|of course|okay|ok)\b[,.!:\s]*", re.IGNORECASE)
_PREFIX = re.compile(
    r"^(here (is|are)[^:\n]*|(the )?(contents? to observe|instructions?|answer|output))\s*:\s*", re.IGNORECASE
)
_BULLET = re.compile(r"^\s*([-*•]|\d+[.)])\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“])")
# what stands before the noun phrase of a sentence that names contents, in three steps
_LEADS = tuple(
    re.compile(rf"^({pattern})\s+", re.IGNORECASE)
    for pattern in (
        r"(please|kindly|carefully|first|to answer (this|the) question,?|you (should|need to|must|can)|"
        r"(it is|it's) (important|necessary|essential) to|be sure to|make sure to|try to|"
        r"the description should)"
        r"(\s+(please|carefully|clearly|closely|briefly))*",
        r"pay (close |special |particular )?attention to|focus(ing)? on|concentrate on|look(ing)? (at|for)|"
        r"describ(e|ing)( in detail)?|observ(e|ing)|identif(y|ying)|note|mention|includ(e|ing)|specify|"
        r"examine|analy[sz]e|list|provide|check|inspect|notice|consider|determine|explain|find",
        r"(the )?((basic|main|key|important|relevant|necessary) )?"
        r"(elements?|contents?|details?|aspects?|things?)"
        r"( (that|which))?( (are|needs?|should|needed|required|to|be|described?|observed?))*"
        r" (is|are|includes?):?",
    )
)
_FINITE = frozenset(
    _words(
        "is are was were am be can could will would shall should must may might does do did has had asks "
        "shows show depicts contains needs need requires require appears seems"
    )
)
_SUBORDINATE = frozenset(_words("that which who whom whose whether where when what how if why"))
_PERSONS = frozenset(_words("i we you it this there he she they as sorry unfortunately"))
_LOWERED = frozenset(
    _words(
        "the a an all any each every both what which who where when how whether number numbers position "
        "positions location locations color colors colour colours shape shapes size sizes text type types "
        "presence details relationship relationships objects people"
    )
)


def clean_part(reply: str, question: Question, options_shown: bool) -> Part:
    """The noun phrase in a reasoner's reply that completes "pay attention to …", or why there is none."""
    text = _first_phrase(reply)
    if not text:
        return Part(None, "the reply is empty")
    if text.endswith("?"):
        return Part(None, f"the reply is a question: {text}")
    phrase = _noun_phrase(text)
    if phrase is None:
        return Part(None, f"the reply is a sentence: {text}")
    if len(phrase.split()) > MAX_WORDS:
        return Part(None, f"the reply has more than {MAX_WORDS} words: {phrase[:80]} …")
    for wrong in (_echo(phrase), _restated(phrase, question)):
        if wrong is not None:
            return Part(None, wrong)
    if not options_shown and (leaked := _leaked_option(phrase, question)) is not None:
        return Part(None, f"the reply gives an option away ({leaked}): {phrase}")
    return Part(phrase)


def _first_phrase(reply: str) -> str:
    """The reply's first sentence, or its list as one line, without prefix, quotes and closing dots."""
    text = _NEXT_PAIR.split(without_thoughts(reply), maxsplit=1)[0].strip(_MARKS + "\n")
    for opening in (_COURTESY, _PREFIX):
        text = opening.sub("", text).strip(_MARKS + "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    if len(lines) > 1 and _BULLET.match(lines[1]):
        first = [] if lines[0].endswith(":") else [lines[0]]
        listed = [line for line in (*first, *lines[1:]) if _BULLET.match(line) or line in first]
        text = ", ".join(_BULLET.sub("", line).strip(_MARKS + ".,;") for line in listed)
    else:
        text = _BULLET.sub("", _SENTENCE_END.split(lines[0])[0])
    return text.strip(_MARKS).rstrip(".;:,!" + _MARKS).strip(_MARKS)


def _noun_phrase(text: str) -> str | None:
    """The sentence without "describe", "focus on" and the like; None where a whole sentence is left."""
    phrase = text
    for lead in _LEADS:
        phrase = lead.sub("", phrase, count=1)
    words = _words(phrase)
    if not words or words[0] in _PERSONS:
        return None
    for position, word in enumerate(words):
        if word in _FINITE and not _SUBORDINATE.intersection(words[:position]):
            return None
    first, _, rest = phrase.partition(" ")
    return f"{first.lower()} {rest}".strip() if first.lower() in _LOWERED else phrase


def _holds(words: list[str], wanted: list[str]) -> bool:
    """Whether `wanted` stands in `words` as one run."""
    length = len(wanted)
    return bool(wanted) and any(
        words[start : start + length] == wanted for start in range(len(words) - length + 1)
    )


def _echo(phrase: str) -> str | None:
    words = _words(phrase)
    for example in (text for pair in FEW_SHOT for text in pair):
        shown = _words(example)
        overlap = len(set(words) & set(shown)) / len(set(words) | set(shown))
        if _holds(words, shown) or overlap >= _ECHO_OVERLAP:
            return f"the reply repeats an example of the prompt: {phrase}"
    return None


def _restated(phrase: str, question: Question) -> str | None:
    asked = _words(question.text)
    if len(asked) > 3 and _holds(_words(phrase), asked):
        return f"the reply repeats the question: {phrase}"
    return None


def _leaked_option(phrase: str, question: Question) -> str | None:
    """An option whose text the part holds, though the question does not."""
    words, asked = _words(phrase), _words(question.text)
    for option in question.options:
        wanted = _words(option)
        if len("".join(wanted)) < 2 and not option.strip().isdigit():
            continue  # a lone letter is an article or a label
        if _holds(words, wanted) and not _holds(asked, wanted):
            return option
    return None
