"""What every file of evaluate/benchmarks/ keeps: a new one is tested as soon as it has a case here."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pytest
from PIL import Image

from prismcap.configs.registry import available
from prismcap.evaluate.benchmarks._contract import Benchmark, Question
from prismcap.evaluate.benchmarks._selected import SelectedOptions

Options = dict[str, Any]


@pytest.fixture(params=available("benchmark"))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Options]:
    name: str = request.param
    if name == "tsv":
        picture, rows = request.getfixturevalue("picture"), []
        for i in range(4):
            row = {"index": str(i), "question": f"q{i}", "answer": "B", "A": "x", "B": "y", "split": "dev"}
            rows.append({**row, "image": picture(i) if i != 2 else "1"})
        rows.append({"index": "4", "question": "Yes?", "answer": "Yes", "image": picture(9)})
        return name, {"path": str(request.getfixturevalue("tsv_file")(rows))}
    if name == "pope":
        Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg")
        rows = [{"question_id": i, "image": "a.jpg", "text": "Is there?", "label": "no"} for i in range(3)]
        (tmp_path / "p.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return name, {"files": {"random": str(tmp_path / "p.json")}, "image_root": str(tmp_path)}
    assert name == "scenes", f"give the benchmark {name} a case in this file"
    request.getfixturevalue("drawings")
    return name, {"num_questions": 12, "object_limit": 32}


def test_questions_are_whole_and_the_same_every_time(
    case: tuple[str, Options], build: Callable[..., Benchmark]
) -> None:
    name, options = case
    benchmark = build(name, **options)
    questions = [benchmark[i] for i in range(len(benchmark))]
    assert questions and len({question.id for question in questions}) == len(questions)
    again = build(name, **options)
    copy = pickle.loads(pickle.dumps(benchmark))  # noqa: S301  # as another process gets it
    for other in (benchmark, again, copy):
        assert [other[i] for i in reversed(range(len(other)))][::-1] == questions
        assert other.checksum == benchmark.checksum
    for question in questions:
        check(question)
    for position in (-1, len(benchmark)):
        with pytest.raises(IndexError):
            benchmark[position]


def check(question: Question) -> None:
    assert question.text.strip() and question.cluster and question.images
    if question.kind == "choice":
        assert len(question.options) >= 2 and question.answer in ascii_uppercase[: len(question.options)]
        assert all(option.strip() for option in question.options)
    else:
        assert question.options == ()
    assert question.kind != "yes_no" or question.answer in ("yes", "no")
    assert all(isinstance(value, str) and value for value in question.categories.values())
    for image in question.images:
        assert image.load().mode == "RGB"
        assert image.fingerprint() == image.fingerprint() and hash(image) == hash(image)


def test_equal_clusters_are_equal_pictures(
    case: tuple[str, Options], build: Callable[..., Benchmark]
) -> None:
    benchmark = build(case[0], **case[1])
    pictures: dict[str, set[tuple[str, ...]]] = {}
    for question in (benchmark[i] for i in range(len(benchmark))):
        found = tuple(image.fingerprint() for image in question.images)
        pictures.setdefault(question.cluster, set()).add(found)
    assert all(len(different) == 1 for different in pictures.values())
    assert len(pictures) == len({next(iter(one)) for one in pictures.values()})


def test_every_benchmark_takes_ids_and_a_limit(
    case: tuple[str, Options], build: Callable[..., Benchmark], tmp_path: Path
) -> None:
    name, options = case
    whole = build(name, **options)
    ids = [whole[i].id for i in range(len(whole))]
    file = tmp_path / "ids.json"
    file.write_text(json.dumps({"checksum": whole.checksum, "ids": [ids[2], ids[0]]}))
    some = build(name, **options, ids_file=str(file))
    assert [some[i].id for i in range(len(some))] == [ids[0], ids[2]], "in the benchmark's order"
    assert some[1] == whole[2]
    first = build(name, **options, limit=2)
    assert [first[i].id for i in range(len(first))] == ids[:2]
    both = build(name, **options, ids_file=str(file), limit=1)
    assert [both[i].id for i in range(len(both))] == [ids[0]]
    assert len({one.checksum for one in (whole, some, first, both)}) == 4


def test_options_are_of_one_shape(case: tuple[str, Options]) -> None:
    from prismcap.configs.registry import component_module

    assert issubclass(component_module("benchmark", case[0]).Options, SelectedOptions)
