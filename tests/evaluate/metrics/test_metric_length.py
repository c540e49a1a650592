"""Lengths and repetitions counted by hand."""

from __future__ import annotations

import pytest
from metric_items import build, by_name, values_of

from prismcap.evaluate.metrics._contract import CaptionItem
from prismcap.evaluate.metrics._words import words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("A dog's well-known 3.5 m, 1,000 kg ball. Yes!", 9),
        ("end.Start", 2),
        ("一只猫 and ねこ", 6),
        ("Ärger mit Öl", 3),
    ],
)
def test_words(text: str, count: int) -> None:
    assert len(words(text)) == count


def test_counted_by_hand() -> None:
    items = [
        CaptionItem("1", "The cat and the cat and the dog."),
        CaptionItem("2", "Hello."),
        CaptionItem("3", ""),
    ]
    figures = by_name(build("length").figures(items))
    assert figures["words"].values == [8.0, 1.0, 0.0]
    assert figures["distinct_1"].values == [4 / 8, 1.0, None]
    assert figures["distinct_2"].values == [pytest.approx(4 / 7), None, None]
    assert figures["repetition"].values == [pytest.approx(2 / 6), None, None]
    found = values_of(build("length"), items)
    assert found == pytest.approx(
        {"words": 3.0, "distinct_1": 0.75, "distinct_2": 4 / 7, "repetition": 1 / 3}
    )
    assert set(values_of(build("length"), items[2:])) == {"words"}


def test_a_text_that_says_one_thing_over_and_over_repeats_itself() -> None:
    (item,) = [CaptionItem("1", "a dog on a mat " * 50)]
    found = values_of(build("length"), [item])
    assert found["repetition"] == pytest.approx(1 - 5 / 248)
