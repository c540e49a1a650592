"""Replies that refuse, or say that the answer cannot be told. Only where nothing was concluded is one a
refusal: "I cannot be sure, but my guess is B" is an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from prismcap.evaluate.scoring.mentions import Mention
from prismcap.evaluate.scoring.replies import fold, plain, sentences, visible

_KNOW = (
    r"(?:determine|tell|know|say|answer|identify|see|view|access|assist|help|provide|select|choose|pick|decide|"
    r"infer|confirm|conclude|be (?:certain|sure)|make|verify|ascertain|process|analy[sz]e|give)"
)
_TOLD = (
    r"(?:determined|told|answered|identified|inferred|known|ascertained|concluded|decided|verified|confirmed)"
)
_SAYS = (
    r"(?:mention|specify|say|state|describe|provide|include|contain|indicate|give|clarify|tell|offer|"
    r"explicitly \w+|directly \w+|reveal|show)"
)
_SOURCE = r"(?:description|text|caption|image|picture|passage|context|information|question|it|they)"
_ENGLISH = (
    rf"\b(?:can(?:not|'t| not)|could(?: not|n't)|(?:am|is|are|'m) (?:not able|unable) to|unable to) "
    rf"(?:\w+ ){{0,2}}?{_KNOW}\b",
    rf"\b(?:can(?:not|'t| not)|could(?: not|n't)) (?:\w+ )?be (?:\w+ )?{_TOLD}\b",
    rf"\b(?:impossible|not possible|hard|difficult|no way) (?:for me )?to {_KNOW}\b",
    r"\b(?:not enough|insufficient|not sufficient|no|lacks? (?:of )?(?:the |any |sufficient |enough )?) ?"
    r"(?:information|details?|context|data|evidence)\b",
    r"\b(?:lacks?|without) (?:\w+ ){0,3}?(?:information|details?|context|data)\b",
    rf"\b{_SOURCE}(?: \w+){{0,3}}? (?:does|do|did)(?: not|n't) (?:\w+ )?{_SAYS}\b",
    rf"\b(?:is|are|was|were)(?: not|n't) (?:\w+ )?(?:mentioned|specified|stated|described|provided|given|"
    rf"indicated|visible|clear)\b(?= (?:in|by|from) (?:the|this) (?:\w+ )?{_SOURCE}|"
    rf"\s*(?:$|[.,]|whether|which|what|if))",
    r"\b(?:unclear|unknown|undetermined|indeterminate)\b",
    r"\bnone of (?:the|these|those) (?:above|options?|choices|answers|given|provided|listed)\b|"
    r"\bnone of them\b",
    r"\bno (?:option|choice|answer|correct answer) (?:matches|fits|is correct|applies|given|provided)\b",
    r"\bi (?:do not|don't) (?:know|have (?:enough|access|the|any))\b",
    r"\bas an ai\b|\bi(?:'m| am) sorry\b|^\W*sorry\b|\bi (?:apologi[sz]e)\b",
    r"\b(?:please|could you|can you) (?:please )?(?:provide|share|upload)\b",
    r"^\W*(?:n/a|not applicable|unanswerable|undecidable|no answer)\W*$",
)
_OTHERS = (
    r"无法(?:确定|判断|回答|得知|看到|查看|识别|选择)|不能(?:确定|判断|回答)|没有(?:足够|提供|提及|提到|说明)|信息不足|未(?:提及|提到|说明)|"
    r"不(?:知道|清楚|确定)|以上(?:都|皆)(?:不|非)",
    r"\bnicht (?:\w+ )?(?:bestimmen|sagen|beantworten|erkennen|feststellen|möglich|ersichtlich|erwähnt|"
    r"genügend)\b|\bkeine der (?:optionen|antworten|genannten)\b|\bnicht genug\b",
    r"\bne (?:peux|peut|permet|mentionne|précise|suffit)\b|"
    r"\bimpossible de (?:déterminer|répondre|savoir|dire)\b|"
    r"\baucune des (?:options|réponses)\b|\bpas assez d'information",
    r"\bno (?:se |lo )?(?:puedo|puede|es posible|hay suficiente|menciona|especifica|sé)\b|\bninguna de las\b",
    r"\bnão (?:\w+ )?(?:posso|possível|consigo|pode|menciona|especifica|há informaç|sei)\b|\bnenhuma das\b",
    r"\bnon (?:\w+ )?(?:posso|possibile|può|menziona|specifica|ci sono (?:abbastanza )?informazioni|so)\b|"
    r"\bnessuna delle\b",
    r"невозможно|нельзя (?:определить|сказать|ответить)|не могу|недостаточно информации|не упоминается|"
    r"не указан|не знаю|ни один из",
    r"(?:判断|特定|回答|確定|決定)(?:でき|することはでき)(?:ません|ない)|わかりません|"
    r"分かりません|情報が(?:不足|足り)|記載(?:がない|されていない|はありません)|알 수 없",
)
_REFUSAL = re.compile("|".join((*_ENGLISH, *_OTHERS)), re.I)
# "the description does not mention a dog" rules out an option; it does not refuse
_RULES_OUT = re.compile(rf"(?:does|do|did)(?: not|n't) (?:\w+ )?{_SAYS}(?: of)? (?:(?:any|a|an|the) )?")
_TURNS = re.compile(
    r",?\s+(?:but|however|yet|though|although|nevertheless|still)\b|;|(?:但是?|不过|然而)", re.I
)


def is_refusal(reply: str) -> bool:
    """Whether the reply holds words of a refusal. Thinking blocks are not read."""
    return bool(_REFUSAL.search(plain(visible(reply))))


def after_refusals(text: str, mentions: Callable[[str], Sequence[Mention]] | None = None) -> str:
    """What follows the last part of a sentence that refuses: all of `text` where none does.

    mentions: where the options' texts stand. A part that rules out an option does not refuse, nor one that
    names an option whose text is itself a refusal ("cannot be determined").
    """
    kept: list[str] = []
    for _, sentence in sentences(text):
        for part in _parts(sentence):
            if _REFUSAL.search(part) and not (mentions is not None and _names_instead(part, mentions)):
                kept.clear()
            else:
                kept.append(part)
    return "".join(kept).strip()


def _parts(sentence: str) -> list[str]:
    cuts = [0, *(turn.start() for turn in _TURNS.finditer(sentence)), len(sentence)]
    return [sentence[start:end] for start, end in pairwise(cuts)]


def _names_instead(part: str, mentions: Callable[[str], Sequence[Mention]]) -> bool:
    folded = fold(part)
    found = mentions(folded)
    ruled_out = {match.end() for match in _RULES_OUT.finditer(folded)}
    return any(m.start in ruled_out or _REFUSAL.search(folded[m.start : m.end]) for m in found)
