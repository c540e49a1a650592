"""Circular evaluation: rotations that are made, and those that a file has already."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prismcap.evaluate.benchmarks._contract import Benchmark, Question

Build = Callable[..., Benchmark]
Write = Callable[..., Path]
Picture = Callable[..., str]
OPTIONS = ("cat", "dog", "owl")


def questions(benchmark: Benchmark) -> list[Question]:
    return [benchmark[i] for i in range(len(benchmark))]


def row(index: int, options: tuple[str, ...], answer: str, image: str) -> dict[str, str]:
    return {
        "index": str(index),
        "question": "q",
        **dict(zip("ABC", options, strict=False)),
        "answer": answer,
    } | {"image": image}


def right(question: Question) -> str:
    return question.options["ABC".index(question.answer)]


def test_every_rotation_once_with_the_same_right_text(
    build: Build, tsv_file: Write, picture: Picture
) -> None:
    rows = [
        row(5, OPTIONS, "B", picture(1)),
        row(6, ("x", "y"), "A", picture(2)),
        {"index": "7", "question": "Is it?", "answer": "yes", "image": "5"},
    ]
    path = str(tsv_file(rows))
    found = questions(build("tsv", path=path, circular=True))
    assert [question.id for question in found] == ["5/r0", "5/r1", "5/r2", "6/r0", "6/r1", "7"]
    assert [question.circle for question in found] == ["5", "5", "5", "6", "6", ""]
    assert [question.options for question in found[:3]] == [
        OPTIONS,
        ("dog", "owl", "cat"),
        ("owl", "cat", "dog"),
    ]
    assert [right(question) for question in found[:5]] == ["dog"] * 3 + ["x"] * 2
    assert sorted(question.answer for question in found[:3]) == ["A", "B", "C"]
    plain = build("tsv", path=path)
    assert [question.circle for question in questions(plain)] == ["", "", ""]
    assert plain.checksum != build("tsv", path=path, circular=True).checksum


@pytest.mark.parametrize("circular", [True, False])
def test_rotations_of_the_file_are_recognised(
    build: Build, tsv_file: Write, picture: Picture, circular: bool
) -> None:
    rows = [
        row(5, OPTIONS, "B", picture(1)),
        row(6, ("x", "y"), "A", picture(2)),
        row(1_000_005, ("dog", "owl", "cat"), "A", "5"),
        row(2_000_005, ("owl", "cat", "dog"), "C", "5"),
        row(1_000_006, ("other", "options"), "A", "6"),  # merely a large index
    ]
    found = questions(build("tsv", path=str(tsv_file(rows)), circular=circular))
    assert [question.id for question in found] == ["5", "6", "1000005", "2000005", "1000006"]
    assert [question.circle for question in found] == ["5", "", "5", "5", ""]


def test_a_circle_is_taken_or_left_as_a_whole(
    build: Build, tsv_file: Write, picture: Picture, tmp_path: Path
) -> None:
    path = str(tsv_file([row(i, OPTIONS, "B", picture(i)) for i in range(4)]))
    limited = questions(build("tsv", path=path, circular=True, limit=2))
    assert [question.id for question in limited] == [f"{i}/r{k}" for i in range(2) for k in range(3)]
    (tmp_path / "ids.json").write_text(json.dumps({"ids": ["3"]}))
    chosen = questions(build("tsv", path=path, circular=True, ids_file=str(tmp_path / "ids.json")))
    assert [question.id for question in chosen] == ["3/r0", "3/r1", "3/r2"]
