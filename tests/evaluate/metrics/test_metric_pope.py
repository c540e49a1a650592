"""POPE against values counted by hand."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from metric_items import build, by_name, values_of

from prismcap.evaluate.metrics._contract import CaptionItem

ROWS: list[tuple[str, Literal["yes", "no"], str]] = [
    ("random", "yes", "Yes, there is."),
    ("random", "yes", "No."),
    ("random", "no", "yes"),
    ("random", "no", "no"),
    ("random", "yes", "Perhaps."),
    ("popular", "no", "There is no dog in the image."),
    ("popular", "yes", "There is a dog in the image."),
    ("adversarial", "no", "No, there is not."),
]
ITEMS = [
    CaptionItem(str(number), text, group=group, answer=answer)
    for number, (group, answer, text) in enumerate(ROWS)
]


def test_counted_by_hand() -> None:
    found = values_of(build("pope"), ITEMS)
    overall = {"accuracy": 5 / 8, "precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7}
    overall |= {"yes_share": 3 / 8, "unread": 1 / 8}
    random = {"accuracy": 2 / 5, "precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5}
    random |= {"yes_share": 2 / 5, "unread": 1 / 5}
    popular = {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0, "yes_share": 1 / 2, "unread": 0.0}
    # nothing is there and nothing is said to be: neither precision nor recall
    adversarial = {"accuracy": 1.0, "yes_share": 0.0, "unread": 0.0}
    groups = {"random": random, "popular": popular, "adversarial": adversarial}
    wanted = overall | {f"{name}_{key}": one for name, row in groups.items() for key, one in row.items()}
    assert found == pytest.approx(wanted)
    assert list(found)[:7] == [*overall, "random_accuracy"], "overall, then in the paper's order"


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    found = values_of(build("pope"), ITEMS)
    for prefix in ("", "random_", "popular_"):
        precision, recall = found[f"{prefix}precision"], found[f"{prefix}recall"]
        assert found[f"{prefix}f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_figure_has_values_only_where_it_applies() -> None:
    figures = by_name(build("pope").figures(ITEMS))
    assert figures["precision"].values == [1.0, None, 0.0, None, None, None, 1.0, None]
    assert figures["recall"].values == [1.0, 0.0, None, None, 0.0, None, 1.0, None]
    assert figures["f1"].values == [1.0, 0.0, 0.0, None, 0.0, None, 1.0, None]
    assert figures["popular_accuracy"].values == [None] * 5 + [1.0, 1.0, None]


def test_a_resample_is_the_figure_of_the_items_that_were_drawn() -> None:
    counts = np.array([[2, 0, 1, 3, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0, 2, 1]])
    for figure in build("pope").figures(ITEMS):
        assert figure.sums is not None and figure.combine is not None
        resampled = figure.combine(counts @ figure.sums)
        for row, found in zip(counts, resampled, strict=True):
            drawn = [item for item, count in zip(ITEMS, row, strict=True) for _ in range(count)]
            wanted = values_of(build("pope"), drawn).get(figure.name)
            assert np.isnan(found) if wanted is None else found == pytest.approx(wanted)


def test_items_without_a_group_have_only_the_overall_figures() -> None:
    bare = [CaptionItem("1", "Yes", answer="yes"), CaptionItem("2", "No", answer="yes")]
    assert set(values_of(build("pope"), bare)) == {
        "accuracy",
        "precision",
        "recall",
        "f1",
        "yes_share",
        "unread",
    }
