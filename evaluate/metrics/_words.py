"""The words of a text, for counting them."""

from __future__ import annotations

import re

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters: one counts as a word
_LETTER = rf"(?:(?![{_UNSPACED}])[^\W_])"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:(?:['’-]|(?<=\d)[.,](?=\d)){_LETTER}+)*")


def words(text: str) -> list[str]:
    """In lower case and order. Hyphens, apostrophes and the points of numbers lie within a word; punctuation
    is none."""
    return _WORD.findall(text.casefold())
