"""CHAIR against values counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from metric_items import build, by_name, values_of

from prismcap.configs.errors import ConfigError, DataError
from prismcap.evaluate.metrics._contract import CaptionItem, MetricContext

ITEMS = [
    # person, dog, car: the car is not there
    CaptionItem("1", "A man and two dogs near a car.", objects=("person", "puppy")),
    # hot dog, table, table: only the reference has the table
    CaptionItem(
        "2",
        "A hot dog on a table, a table.",
        objects=("hot dog", "person"),
        references=("A table with a hot dog",),
    ),
    CaptionItem("3", "Something blue.", objects=("cat",)),
]


def test_counted_by_hand() -> None:
    figures = by_name(build("chair").figures(ITEMS))
    assert figures["chair_i"].values == [pytest.approx(1 / 3), 0.0, None]
    assert figures["chair_s"].values == [1.0, 0.0, 0.0]
    assert figures["recall"].values == [1.0, 0.5, 0.0]
    assert figures["words"].values == [8.0, 8.0, 2.0]
    wanted = {"chair_i": 1 / 6, "chair_s": 1 / 3, "recall": 3 / 5, "words": 6.0}
    assert values_of(build("chair"), ITEMS) == pytest.approx(wanted)


def test_without_what_references_name_every_mention_of_it_is_wrong() -> None:
    found = values_of(build("chair", with_references=False), ITEMS)
    assert found["chair_i"] == pytest.approx(3 / 6) and found["chair_s"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(3 / 5), "recall is of what is annotated"


def test_texts_that_name_nothing_have_no_chair_i() -> None:
    assert set(values_of(build("chair"), ITEMS[2:])) == {"chair_s", "recall", "words"}
    bare = [replace(item, objects=()) for item in ITEMS]
    assert "recall" not in values_of(build("chair"), bare)


def test_in_scenes_a_word_for_the_same_thing_is_no_hallucination_and_no_recall() -> None:
    items = [
        CaptionItem("1", "A flower on the left and a drum on the right.", objects=("rose", "drum")),
        CaptionItem("2", "A tulip.", objects=("rose",)),
        CaptionItem("3", "Two tigers, and a blorb.", objects=("blorb",)),
    ]
    figures = by_name(build("chair", synonyms="scenes").figures(items))
    assert figures["chair_i"].values == [0.0, 0.0, 0.5]
    assert figures["recall"].values == [0.5, 0.0, 1.0]


def test_an_object_that_no_synonym_names_is_refused() -> None:
    item = CaptionItem("1", "A cat.", where="rows.json, row 7", objects=("cat", "tooth brushh"))
    with pytest.raises(
        DataError, match=r"rows.json, row 7: objects: 'tooth brushh'.*Did you mean 'toothbrush'"
    ):
        build("chair").figures([item])


def test_ones_own_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("animal: [cat, dog]\n")
    items = [CaptionItem("1", "A dog on a chair.", objects=("cat",))]
    assert values_of(build("chair", synonyms=str(path)), items)["chair_i"] == 0
    assert build("chair", synonyms=str(path)).identity != build("chair").identity
    assert build("chair", with_references=False).identity != build("chair").identity
    path.write_text("animal: cat\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: chair\.synonyms: .*mine\.yaml, key 'animal'"):
        build("chair", MetricContext(where="run.yaml"), synonyms=str(path))
