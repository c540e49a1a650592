"""Descriptions from a file, and the benchmark's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shown import PICTURES, Broken, ask

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.perceivers import file, reference
from prismcap.evaluate.perceivers._contract import Perceiver, PerceiverContext

RED, GREEN, BLUE = PICTURES[:3]
CONTEXT = PerceiverContext("described", Decoding(), "cpu", 4)


def write(path: Path, *rows: Any) -> Perceiver:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return file.build(file.Options(path=str(path)), CONTEXT)


def of_question(id: Any, text: Any = "A disc.") -> dict[str, Any]:
    return {"benchmark": "shapes", "id": id, "text": text}


def test_rows_are_found_by_question(tmp_path: Path) -> None:
    perceiver = write(tmp_path / "d.jsonl", of_question("7", "Un disque é."), "", of_question(8, " Two. "))
    assert not perceiver.needs_pictures
    requests = [ask(RED, GREEN, id="8"), ask(Broken(), id="7"), ask(RED, id="9")]
    answers = dict(perceiver.describe(requests))
    assert (answers[0].text, answers[1].text) == ("Two.", "Un disque é.")
    assert answers[2].status == "failed"
    assert answers[2].error == f"{tmp_path / 'd.jsonl'}: no row for benchmark 'shapes', id '9'"


def test_rows_are_found_by_picture(tmp_path: Path) -> None:
    rows = [{"fingerprint": image.fingerprint(), "text": f"{image.colour}."} for image in (RED, GREEN)]
    assert write(tmp_path / "pictures.jsonl", *rows).needs_pictures
    perceiver = write(tmp_path / "d.jsonl", *rows, of_question("3", "Both."))
    assert not perceiver.needs_pictures, "questions about one picture may differ"
    requests = [ask(GREEN), ask(GREEN, RED), ask(GREEN, id="3"), ask(GREEN, BLUE), ask(RED, Broken())]
    answers = dict(perceiver.describe(requests))
    assert answers[0].text == "green."
    assert answers[1].text == "Image 1: green.\nImage 2: red."
    assert answers[2].text == "Both."
    assert answers[3].error is not None and "picture 2 of 2" in answers[3].error
    assert BLUE.fingerprint() in answers[3].error and "id '0'" in answers[3].error
    assert answers[4].error == "picture 2 of 2: broken.jpg: not a readable picture"


def test_a_row_that_comes_twice_names_both_lines(tmp_path: Path) -> None:
    perceiver = write(tmp_path / "d.jsonl", of_question("7"), of_question("8"), of_question(7, "Other."))
    with pytest.raises(DataError, match=r"d\.jsonl, line 3: 'shapes 7' has a row in line 1 already"):
        next(iter(perceiver.describe([ask(RED)])))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not a JSON object in UTF-8"),
        ("[1]", "line 2: expected an object, found list"),
        ({"id": "1", "text": "a"}, r"line 2: give 'benchmark' and 'id', or 'fingerprint'.*\['id', 'text'\]"),
        ({**of_question("1"), "fingerprint": "x"}, "line 2: give .* and not both"),
        (of_question("1", ""), "line 2: 'text' must be a description, found ''"),
        (of_question("1", None), "line 2: 'text' must be a description, found None"),
        (of_question(True), "line 2: True must be a text or a whole number"),
        ({"fingerprint": None, "text": "a"}, "line 2: None must be a text"),
    ],
)
def test_a_bad_row_names_its_line(row: Any, message: str, tmp_path: Path) -> None:
    perceiver = write(tmp_path / "d.jsonl", of_question("0"), row)
    with pytest.raises(DataError, match=message):
        _ = perceiver.identity


def test_the_identity_is_of_the_contents(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", of_question("0")).identity
    assert write(tmp_path / "b.jsonl", of_question("0")).identity == first
    assert write(tmp_path / "a.jsonl", of_question("0", "A disc!")).identity != first


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"perceivers\.described\.path: .*nothing\.jsonl: no such file"):
        file.build(file.Options(path=str(tmp_path / "nothing.jsonl")), CONTEXT)


def test_the_benchmarks_own_description() -> None:
    perceiver = reference.build(reference.Options(), CONTEXT)
    answers = dict(perceiver.describe([ask(RED, reference="A red disc."), ask(RED, id="4")]))
    assert answers[0].text == "A red disc."
    assert answers[1].status == "failed"
    assert answers[1].error == "shapes, question 4: the benchmark has no reference description"
