"""Which texts refuse, and which only hedge."""

from __future__ import annotations

import pytest
from metric_items import build, by_name

from prismcap.evaluate.metrics._contract import CaptionItem


@pytest.mark.parametrize(
    ("text", "refuses", "hedges"),
    [
        ("I'm sorry, but I can't view the image. Please upload it.", 1, 1),
        ("As an AI, I am unable to see pictures.", 1, 1),
        ("A dog sits on a mat. The breed cannot be determined.", 0, 1),
        ("A dog sits on a mat, and a man can be seen behind it.", 0, 0),
        ("<think>I cannot tell what it is.</think>A dog.", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_text_refuses_or_hedges_or_describes(text: str, refuses: float, hedges: float) -> None:
    figures = by_name(build("refusal").figures([CaptionItem("1", text)]))
    assert (figures["refusal"].values, figures["hedging"].values) == ([refuses], [hedges])
