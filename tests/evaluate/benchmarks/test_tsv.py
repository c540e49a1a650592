"""VLMEvalKit TSV files: what their columns mean, their pictures, and what is wrong with bad ones."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prismcap.configs.errors import DataError
from prismcap.data.image import FileImage
from prismcap.data.schema import SampleRejected
from prismcap.evaluate.benchmarks._contract import Benchmark, Question

Build = Callable[..., Benchmark]
Write = Callable[..., Path]
Picture = Callable[..., str]
CHOICE = {"question": "Which?", "A": "cat", "B": "dog", "answer": "B"}


def questions(benchmark: Benchmark) -> list[Question]:
    return [benchmark[i] for i in range(len(benchmark))]


def grey(question: Question) -> list[int]:
    return [int(np.asarray(image.load())[0, 0, 0]) for image in question.images]


def test_choice_with_hint_and_groups(build: Build, tsv_file: Write, picture: Picture) -> None:
    row = {
        **CHOICE,
        "index": "7",
        "hint": "Look.",
        "category": "coarse",
        "l2_category": "scene",
        "split": "val",
    }
    long = {**row, "index": "8", "C": "a\tfrog", "D": 'an "owl"\nor two', "hint": "nan", "answer": "d"}
    path = tsv_file([{**row, "image": picture(3)}, {**long, "image": picture(4)}])
    first, second = questions(build("tsv", path=str(path)))
    assert (first.id, first.kind, first.text, first.hint) == ("7", "choice", "Which?", "Look.")
    assert (first.options, first.answer, first.circle) == (("cat", "dog"), "B", "")
    assert first.categories == {"category": "coarse", "l2_category": "scene", "split": "val"}
    assert second.options == ("cat", "dog", "a\tfrog", 'an "owl"\nor two') and second.answer == "D"
    assert second.hint == "" and first.reference is None
    assert (grey(first), grey(second)) == ([3], [4])
    other = build("tsv", path=str(path), categories=["split"])
    assert other[0].categories == {"split": "val"} and other.checksum != build("tsv", path=str(path)).checksum


@pytest.mark.parametrize(
    ("cells", "kind", "options", "answer", "rules"),
    [
        ({"A": "x", "B": "y", "C": "nan", "D": "", "answer": "A"}, "choice", ("x", "y"), "A", {}),
        (
            {"A": "x", "B": "", "C": "None", "D": "N/A", "answer": "C"},
            "choice",
            ("x", "None", "N/A"),
            "B",
            {},
        ),
        ({"A": "x", "B": "y", "answer": "y"}, "choice", ("x", "y"), "B", {}),
        ({"answer": "Yes"}, "yes_no", (), "yes", {}),
        ({"A": "Yes", "B": "No", "answer": "B"}, "choice", ("Yes", "No"), "B", {}),
        ({"answer": "Paris"}, "text", (), "Paris", {}),
        (
            {
                "question_type": "multi_choice",
                "answer_type": "text",
                "choices": "['3', \"4's\"]",
                "answer": "4's",
                "answer_option": "B",
            },
            "choice",
            ("3", "4's"),
            "B",
            {"question_type": "multi_choice", "answer_type": "text"},
        ),
        (
            {
                "question_type": "multi_choice",
                "answer_type": "integer",
                "choices": "['3', '4']",
                "answer": "4",
            },
            "choice",
            ("3", "4"),
            "B",
            {"question_type": "multi_choice", "answer_type": "integer"},
        ),
        (
            {
                "question_type": "free_form",
                "answer_type": "float",
                "precision": "1.0",
                "unit": "",
                "answer": "1.2",
            },
            "number",
            (),
            "1.2",
            {"question_type": "free_form", "answer_type": "float", "precision": "1.0"},
        ),
        (
            {"question_type": "free_form", "answer_type": "list", "answer": "[1, 2]"},
            "text",
            (),
            "[1, 2]",
            {"question_type": "free_form", "answer_type": "list"},
        ),
        ({"answer_type": "text", "answer": "Yes"}, "text", (), "Yes", {"answer_type": "text"}),
    ],
)
def test_kinds(
    build: Build,
    tsv_file: Write,
    picture: Picture,
    cells: dict[str, str],
    kind: str,
    options: tuple[str, ...],
    answer: str,
    rules: dict[str, str],
) -> None:
    path = tsv_file([{"index": "1", "question": "q", "image": picture(1), **cells}])
    question = build("tsv", path=str(path))[0]
    assert (question.kind, question.options, question.answer, question.rules) == (
        kind,
        options,
        answer,
        rules,
    )


def test_pointers_share_pictures_and_cluster(build: Build, tsv_file: Write, picture: Picture) -> None:
    images = {"0": "2", "1": picture(10), "2": picture(20), "3": "1", "4": picture(10)}
    rows = [{**CHOICE, "index": index, "image": image} for index, image in images.items()]
    found = questions(build("tsv", path=str(tsv_file(rows))))
    assert [grey(question) for question in found] == [[20], [10], [20], [10], [10]]
    assert found[0].images == found[2].images and found[0].cluster == found[2].cluster
    assert len({found[1].cluster, found[3].cluster, found[4].cluster}) == 1, "equal pictures, pointer or not"
    assert len({question.cluster for question in found}) == 2


def test_several_pictures_a_row(build: Build, tsv_file: Write, picture: Picture) -> None:
    three = [picture(1), picture(2), picture(3)]
    as_json = "[" + ", ".join(f'"{one}"' for one in three) + "]"
    text = "Compare <image 1> with <image 2> and <image 3>."
    row = {**CHOICE, "question": text}
    path = tsv_file(
        [
            {**row, "index": "a", "image": str(three)},
            {**row, "index": "b", "image": as_json},
            {**row, "index": "c", "image": "a"},
            {**row, "index": "d", "image": str(three[:1])},
        ]
    )
    found = questions(build("tsv", path=str(path)))
    assert [grey(question) for question in found] == [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1]]
    assert all(question.text == text for question in found)
    assert found[0].cluster == found[2].cluster != found[3].cluster


def test_pictures_are_those_of_files(build: Build, tsv_file: Write, picture: Picture, tmp_path: Path) -> None:
    content = base64.b64decode(picture(77))
    (tmp_path / "a.png").write_bytes(content)
    rows = [{**CHOICE, "index": "1", "image": picture(77)}, {**CHOICE, "index": "2", "image_path": "a.png"}]
    embedded, filed = questions(build("tsv", path=str(tsv_file(rows))))
    twin = FileImage(tmp_path / "a.png")
    assert embedded.images[0].fingerprint() == filed.images[0].fingerprint() == twin.fingerprint()
    assert embedded.images[0].load().tobytes() == filed.images[0].load().tobytes()


def test_paths_stay_inside_the_root(build: Build, tsv_file: Write, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (2, 2), (5, 5, 5)).save(root / "in.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "out.png")
    rows = [
        {**CHOICE, "index": "1", "image_path": "in.png"},
        {**CHOICE, "index": "2", "image_path": "['in.png']"},
    ]
    found = questions(build("tsv", path=str(tsv_file(rows)), image_root=str(root)))
    assert [grey(question) for question in found] == [[5], [5]]
    bad = tsv_file([*rows, {**CHOICE, "index": "3", "image_path": "../out.png"}], "bad.tsv")
    with pytest.raises(DataError, match=r"bad\.tsv, row 3 .*'image_path'.*outside of the data root"):
        build("tsv", path=str(bad), image_root=str(root))


def test_split_keeps_its_rows_and_their_pointers(build: Build, tsv_file: Write, picture: Picture) -> None:
    rows = [
        {**CHOICE, "index": "1", "split": "test", "answer": "?", "image": picture(8)},
        {**CHOICE, "index": "2", "split": "dev", "image": "1"},
    ]
    path = str(tsv_file(rows))
    (only,) = questions(build("tsv", path=path, split="dev"))
    assert only.id == "2" and grey(only) == [8]
    with pytest.raises(DataError, match=r"row 1 .*column 'answer': '\?' is not among the options"):
        build("tsv", path=path)
    with pytest.raises(DataError, match=r"no row has split 'val'; there are test \(1\), dev \(1\)"):
        build("tsv", path=path, split="val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": "1"}, r"row 2, column 'index': '1' is the index of row 1 too"),
        ({"index": ""}, r"row 2, column 'index': empty"),
        ({"question": " "}, r"row 2 \(index '2'\), column 'question': empty"),
        ({"answer": "nan"}, r"row 2 \(index '2'\), column 'answer': empty"),
        ({"answer": "C"}, r"row 2 \(index '2'\), column 'answer': 'C' is not among the options.*A, B"),
        ({"B": ""}, r"row 2 .*column 'A': the only option"),
        ({"image": "9"}, r"row 2 .*column 'image': '9' is no row's index"),
        ({"image": "2"}, r"row 2 .*column 'image': '2' points at its own row"),
        ({"image": ""}, r"row 2, columns image and image_path: no picture"),
        ({"image": "['x"}, r"row 2 .*column 'image': .* is no row's index"),
        ({"image": "[1, 2]"}, r"row 2 .*column 'image': expected a list of texts"),
        ({"image": "['a', b]"}, r"row 2 .*column 'image': not a list of pictures"),
        (
            {"A": "", "B": "", "answer_type": "integer", "answer": "many"},
            r"row 2 .*column 'answer': 'many' is no number",
        ),
        (
            {"A": "", "B": "", "question_type": "multi_choice", "choices": "[1"},
            r"row 2 .*column 'choices': '\[1' is no list",
        ),
    ],
)
def test_bad_rows_are_named(
    build: Build, tsv_file: Write, picture: Picture, change: dict[str, str], message: str
) -> None:
    good = {**CHOICE, "index": "1", "image": picture(1)}
    path = tsv_file([good, {**good, "index": "2", **change}])
    with pytest.raises(DataError, match=message) as error:
        build("tsv", path=str(path))
    assert str(path) in str(error.value)


def test_a_pointer_at_a_pointer_is_refused(build: Build, tsv_file: Write, picture: Picture) -> None:
    images = {"1": picture(1), "2": "1", "3": "2"}
    rows = [{**CHOICE, "index": index, "image": image} for index, image in images.items()]
    with pytest.raises(DataError, match=r"row 3 .*'2' points at row 2, which holds no picture itself"):
        build("tsv", path=str(tsv_file(rows)))


@pytest.mark.parametrize("missing", ["index", "question", "answer", "image"])
def test_missing_columns_are_named(build: Build, tsv_file: Write, picture: Picture, missing: str) -> None:
    row = {**CHOICE, "index": "1", "image": picture(1)}
    del row[missing]
    with pytest.raises(DataError, match=f"no column {missing}"):
        build("tsv", path=str(tsv_file([row])))


def test_bad_files(build: Build, tsv_file: Write, picture: Picture, tmp_path: Path) -> None:
    row = {**CHOICE, "index": "1", "image": picture(1)}
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "empty"),
        "header": (b"index\tquestion\tanswer\timage\n", "without questions"),
        "twice": (b"index\tquestion\tanswer\timage\tA\tA\n", "'A' stands twice"),
        "latin": (
            b"index\tquestion\tanswer\timage\n1\tcaf\xe9\tyes\t" + b"A" * 80,
            r"row 1.*'question'.*UTF-8",
        ),
        "short": (
            tsv_file([row]).read_bytes()[:-40].rsplit(b"\t", 1)[0],
            "row 1: 5 fields, but .* 6 columns",
        ),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            build("tsv", path=str(tmp_path / name))
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read"):
        build("tsv", path=str(tmp_path / "none.tsv"))
    with pytest.raises(DataError, match=r"no column 'kind' to group"):
        build("tsv", path=str(tsv_file([row])), categories=["kind"])
    with pytest.raises(DataError, match=r"no column 'split'"):
        build("tsv", path=str(tsv_file([row])), split="dev")


def test_broken_pictures_fail_when_loaded(build: Build, tsv_file: Write, picture: Picture) -> None:
    cut = base64.b64encode(base64.b64decode(picture(1, side=64))[:-30]).decode()
    images = [picture(1), "*" * 80, base64.b64encode(b"x" * 80).decode(), cut, picture(1, side=101)]
    rows = [{**CHOICE, "index": str(i), "image": image} for i, image in enumerate(images)]
    path = tsv_file(rows)
    found = questions(build("tsv", path=str(path)))
    assert grey(found[0]) == [1]
    for position, (reason, message) in {
        1: ("image_corrupt", "not base64"),
        2: ("image_corrupt", "not a readable picture"),
        3: ("image_corrupt", "not a readable picture"),
        4: ("image_too_large", "is more than max_image_pixels=10000"),
    }.items():
        with pytest.raises(SampleRejected, match=message) as error:
            found[position].images[0].load()
        assert error.value.reason == reason
        assert f"{path}, row {position + 1}, column 'image'" in str(error.value)


def test_a_file_that_changes_is_noticed(build: Build, tsv_file: Write, picture: Picture) -> None:
    row: dict[str, Any] = {**CHOICE, "index": "1", "image": picture(1)}
    benchmark = build("tsv", path=str(tsv_file([row])))
    image = benchmark[0].images[0]
    tsv_file([{**row, "question": "Another?"}])
    for read in (image.load, lambda: benchmark[0]):
        with pytest.raises(DataError, match="changed while it was in use"):
            read()


def test_checksum_follows_every_byte(build: Build, tsv_file: Write, picture: Picture) -> None:
    row = {**CHOICE, "index": "1", "image": picture(1)}
    changes: list[dict[str, str]] = [{}, {"A": "cow"}, {"answer": "A"}, {"image": picture(2)}, {"index": "2"}]
    sums = [build("tsv", path=str(tsv_file([{**row, **change}]))).checksum for change in changes]
    assert len(set(sums)) == len(changes)
    assert build("tsv", path=str(tsv_file([row], "elsewhere.tsv"))).checksum == sums[0], "not where it lies"
