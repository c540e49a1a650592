"""What of a reply is read: without its thinking, its mark-up turned into plain text, cut into sentences."""

from __future__ import annotations

import re
import unicodedata

BOX_OPEN, BOX_CLOSE = "\ue000", "\ue001"  # private-use characters around what was boxed or in answer tags

_THINKING = r"(?:think|thinking|thought|thoughts|reasoning|scratchpad)"
_BLOCK = re.compile(rf"<({_THINKING})>.*?</\1\s*>", re.S | re.I)
_OPEN = re.compile(rf"<{_THINKING}>", re.I)
_CLOSE = re.compile(rf"</{_THINKING}\s*>", re.I)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ANSWER_TAG = re.compile(r"<(?:final_)?answer>(.*?)(?:</(?:final_)?answer>|$)", re.S | re.I)
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mbox|operatorname)\s*\{([^{}]*)\}"
)
_BOLD_LETTER = re.compile(r"(\*\*|__)\s*\(?([A-Za-z])\)?\s*\1")
# a full stop after these ends no sentence
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|vs|Fig|approx|e\.g|i\.e|z\.B)|^)\.$", re.I)
_SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"'”’)\]]|$)\n*|[。！？；;]\n*|\n+")


def visible(reply: str) -> str:
    """The reply without thinking blocks; "" when a block was never closed: nothing was answered.

    A closing tag without an opening one ends a block that the chat template opened.
    """
    text = _BLOCK.sub(" ", reply)
    closing = list(_CLOSE.finditer(text))
    if closing:
        text = text[closing[-1].end() :]
    return "" if _OPEN.search(text) else text.strip()


def plain(text: str) -> str:
    """Markdown and LaTeX as plain text. What was in a box stands between BOX_OPEN and BOX_CLOSE."""
    text = unicodedata.normalize("NFKC", _mark_boxes(text)).replace("\u2044", "/").replace("’", "'")
    text = _ANSWER_TAG.sub(lambda tag: f"{BOX_OPEN}{tag.group(1)}{BOX_CLOSE}", text)
    for _ in range(3):  # nested commands, from the inside
        text = _WRAPPED.sub(r"\1", _FRACTION.sub(r"\1/\2", text))
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree", "°", text)
    text = re.sub(r"\\([%$&#_])", r"\1", text)
    text = re.sub(r"\\[()\[\]]|\\[,;! ]|\\\\", " ", text)
    text = re.sub(r"\$\s*([A-Za-z])\s*\$|\$\s*(?=[\ue000(A-Za-z])|(?<=[\ue001)A-Za-z])\s*\$+", r" \1 ", text)
    return _without_markdown(text).strip()


def sentences(text: str) -> list[tuple[int, str]]:
    """Start and text of each sentence; its closing mark belongs to it."""
    found: list[tuple[int, str]] = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if end.group().strip() == "." and _ABBREVIATION.search(
            text[max(start, end.start() - 8) : end.start() + 1]
        ):
            continue
        found.append((start, text[start : end.end()]))
        start = end.end()
    found.append((start, text[start:]))
    return [(at, sentence) for at, sentence in found if sentence.strip()]


def fold(text: str) -> str:
    """For comparing texts: one case, no currency signs, thousands separators, quotes or hyphens, a space
    between number and unit."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("−", "-")
    text = re.sub(r"[$€£¥\"“”„«»`\ue000\ue001]", " ", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\s*\b(?:degrees?|deg)\b", "°", text)
    text = re.sub(r"\s*(?:%|\bper ?cent\b)", "%", text)
    text = re.sub(r"(?<=\w)[-‐–](?=\w)(?!(?<=\d[-‐–])\d)", " ", text)
    text = re.sub(r"(?<=\d)(?=[^\W\d_])", " ", text)
    return re.sub(r"\s+", " ", text).strip()


def _mark_boxes(text: str) -> str:
    """A box that is never closed was cut off: it and what follows are dropped."""
    parts: list[str] = []
    at = 0
    while (box := _BOX.search(text, at)) is not None:
        depth, end = 1, box.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        parts.append(text[at : box.start()])
        if depth:
            return "".join(parts)
        parts.append(f"{BOX_OPEN}{text[box.end() : end - 1]}{BOX_CLOSE}")
        at = end
    return "".join(parts) + text[at:]


def _without_markdown(text: str) -> str:
    text = re.sub(r"^\s*```\w*\s*$", "", text, flags=re.M)
    text = _BOLD_LETTER.sub(r"(\2)", text)
    text = re.sub(r"\*+(?=\S)|(?<=\S)\*+|`|__|(?<!\w)_|_(?!\w)", "", text)
    return re.sub(r"^[ \t]*(?:#+|>+|[-*•](?=\s)|\d+\.(?=\s))[ \t]*", "", text, flags=re.M)
