"""A benchmark that is written as TSV and read again asks the same."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prismcap.configs.errors import DataError
from prismcap.evaluate.benchmarks._contract import Benchmark, Question
from prismcap.evaluate.benchmarks._write_tsv import write_tsv

Build = Callable[..., Benchmark]


class Listed:
    def __init__(self, *questions: Question) -> None:
        self.questions = questions
        self.checksum = "1"

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, position: int, /) -> Question:
        return self.questions[position]


def all_of(benchmark: Benchmark) -> list[Question]:
    return [benchmark[i] for i in range(len(benchmark))]


def assert_same(first: list[Question], second: list[Question]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert replace(one, images=(), cluster="") == replace(other, images=(), cluster="")
        assert len(one.images) == len(other.images)
        for picture, again in zip(one.images, other.images, strict=True):
            assert picture.load().tobytes() == again.load().tobytes()
    same = [[x.cluster == y.cluster for x in these] for these in (first, second) for y in these]
    assert same[: len(first)] == same[len(first) :], "the same questions share pictures"


@pytest.mark.usefixtures("drawings")
def test_scenes(build: Build, tmp_path: Path) -> None:
    scenes = build("scenes", num_questions=60, object_limit=32)
    path = tmp_path / "scenes.tsv"
    write_tsv(scenes, path)
    assert_same(all_of(scenes), all_of(build("tsv", 100_000, path=str(path))))
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    pointers = [row for row in rows if len(row["image"]) <= 64]
    assert len(rows) == 60 and len(rows) - len(pointers) == len({one.cluster for one in all_of(scenes)})


def test_every_kind_and_awkward_text(
    build: Build, tsv_file: Callable[..., Path], picture: Callable[..., str], tmp_path: Path
) -> None:
    several = str([picture(1), picture(2)])
    choice = {"question": 'a\tb\r\n"c" <image 1>\rd', "A": "'x'", "B": '"', "C": "z", "answer": "B"}
    rules = {"question_type": "free_form", "precision": "2.0", "unit": "cm"}
    rows = [
        {**choice, "index": "1", "hint": "h\n", "category": "c", "image": several, "reference": "All of it."},
        {**choice, "index": "2", "C": "", "image": "1", "split": "dev"},
        {"index": "3", "question": "?", "answer": "no", "image": picture(1)},
        {
            "index": "4",
            "question": "?",
            "answer": "1.50",
            "answer_type": "float",
            **rules,
            "image": picture(3),
        },
        {"index": "5", "question": "?", "answer": "Paris", "answer_type": "text", "image": picture(3)},
        {"index": "6", "question": "?", "answer": "yes", "answer_type": "text", "image": picture(3)},
    ]
    path = tmp_path / "again.tsv"
    read = all_of(build("tsv", path=str(tsv_file(rows))))
    # a lone carriage return, which csv leaves out of quotes where it can
    first = Listed(*read, replace(read[-1], id="7", text="a\rb", answer="x\rc"))
    write_tsv(first, path)
    assert_same(all_of(first), all_of(build("tsv", 100_000, path=str(path))))


def test_what_the_format_cannot_say_is_refused_and_nothing_is_left(
    build: Build, tsv_file: Callable[..., Path], picture: Callable[..., str], tmp_path: Path
) -> None:
    row = {"index": "1", "question": "q", "A": "x", "B": "y", "answer": "A", "image": picture(1)}
    question = build("tsv", path=str(tsv_file([row])))[0]
    target = tmp_path / "out" / "x.tsv"
    target.parent.mkdir()
    for bad in (
        replace(question, options=("x", "nan")),
        replace(question, images=()),
        replace(question, categories={"question": "x"}),
    ):
        with pytest.raises(DataError):
            write_tsv(Listed(question, bad), target)
        assert list(target.parent.iterdir()) == []
