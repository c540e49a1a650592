"""The filtered subsets: which questions are kept, and what an ids file must say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.errors import DataError
from prismcap.evaluate.benchmarks._contract import Benchmark
from prismcap.evaluate.benchmarks._subset import filtered_subset, write_ids

Build = Callable[..., Benchmark]
RIGHT = {"a": "110100", "b": "100110", "c": "101000"}  # by reasoner: which of six questions it answers blind


def rows(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": "stars",
            "id": str(i),
            "reasoner": name,
            "right": flag == "1",
            "perceiver": "blind",
            **more,
        }
        for name, flags in RIGHT.items()
        for i, flag in enumerate(flags)
    ]


@pytest.mark.parametrize("fewer_than", [1, 2, 3])
def test_the_rule(fewer_than: int) -> None:
    noise = [
        {**row, "right": True, **other}
        for row in rows()
        for other in ({"benchmark": "other"}, {"perceiver": "captioner"})
    ]
    subset = filtered_subset([*noise, *rows()], "stars", "sum", fewer_than)
    counts = [sum(flags[i] == "1" for flags in RIGHT.values()) for i in range(6)]
    assert subset.ids == tuple(str(i) for i in range(6) if counts[i] < fewer_than)
    assert subset.reasoners == ("a", "b", "c")
    assert subset.rule == f"answered blind by fewer than {fewer_than} of 3 reasoners"
    only = filtered_subset(rows(), "stars", "sum", reasoners=["c"])
    assert only.ids == ("1", "3", "4", "5") and only.reasoners == ("c",)


def test_a_circle_is_answered_where_all_its_rotations_are() -> None:
    flags = {"x": (True, True), "y": (True, False)}
    found = [
        {"benchmark": "m", "id": f"{circle}/r{i}", "circle": circle, "reasoner": "a", "right": flag}
        for circle, both in flags.items()
        for i, flag in enumerate(both)
    ]
    assert filtered_subset(found, "m", "sum").ids == ("y",)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda found: found[:-1], {}, "'c' was not asked question '5'"),
        (lambda found: [*found[:-1], {**found[-1], "status": "failed"}], {}, "question '5'.*'c' failed"),
        (lambda found: [{**row, "right": True} for row in found], {}, "answer every question"),
        (lambda found: found[:0], {}, "no blind rows of 'stars'"),
        (lambda found: found, {"reasoners": ["a", "d"]}, "no blind answers of 'd'"),
        (lambda found: found, {"fewer_than": 4}, "fewer_than: 4"),
        (lambda found: found, {"fewer_than": 0}, "fewer_than: 0"),
    ],
)
def test_incomplete_runs_are_refused(change: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        filtered_subset(change(rows()), "stars", "sum", **options)


def test_the_file_chooses_the_questions_it_was_made_for(
    build: Build, tsv_file: Callable[..., Path], picture: Callable[..., str], tmp_path: Path
) -> None:
    made = [
        {"index": str(i), "question": "q", "answer": "A", "A": "x", "B": "y", "image": picture(i)}
        for i in range(6)
    ]
    path = str(tsv_file(made))
    subset = filtered_subset(rows(), "stars", build("tsv", path=path).checksum)
    file = tmp_path / "ids.json"
    write_ids(file, subset)
    assert set(json.loads(file.read_text())) == {"benchmark", "checksum", "reasoners", "rule", "ids"}
    chosen = build("tsv", path=path, ids_file=str(file))
    assert [chosen[i].id for i in range(len(chosen))] == ["5"]
    other = str(tsv_file([{**made[0], "A": "z"}, *made[1:]], "other.tsv"))
    with pytest.raises(DataError, match=r"ids\.json, key 'checksum'.*chosen among others"):
        build("tsv", path=other, ids_file=str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "key 'ids': expected a list"),
        ('{"ids": []}', "not empty"),
        ('{"ids": [1]}', "as texts"),
        ('{"ids": ["0", "77"]}', "'77' is no question of this benchmark"),
    ],
)
def test_bad_files_are_named(
    build: Build,
    tsv_file: Callable[..., Path],
    picture: Callable[..., str],
    tmp_path: Path,
    text: str,
    message: str,
) -> None:
    row = {"index": "0", "question": "q", "answer": "yes", "image": picture(1)}
    file = tmp_path / "ids.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        build("tsv", path=str(tsv_file([row])), ids_file=str(file))
    assert str(file) in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        build("tsv", path=str(tsv_file([row])), ids_file=str(tmp_path / "none.json"))
