"""Every row shape of the field becomes the one schema; a bad row is named and rejected, not fatal."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prismcap.data.schema import DataError, ImagePart, SampleRejected, TextPart
from prismcap.data.sources import _rows, llava_json
from prismcap.data.sources._contract import SourceContext


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(turns)]


def source(path: Path, **options: Any) -> llava_json.LlavaJson:
    return llava_json.build(llava_json.Options(path=str(path), **options), SourceContext())


def write(folder: Path, rows: list[Any], form: str = "array") -> Path:
    path = folder / f"{form}.json"
    if form == "array":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif form == "indented":
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8-sig")
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n\n".join(lines) + ("\n" if form == "lines" else ""), encoding="utf-8")
    return path


ROWS = [
    {"id": "a", "image": "x.png", "conversations": talk("<image>\nWhat?", "A cat ü 🐈.")},
    {"idx": 7, "conversations": talk("Hello", "Hi", "Bye", "Bye bye")},
    {"conversations": talk("Über\n<image>", "Ja"), "image": ["x.png"], "url": "http://…"},
]


@pytest.mark.parametrize("form", ["array", "indented", "lines", "lines_cut"])
def test_forms_of_the_file_read_alike(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "_BLOCK_BYTES", 64)  # rows straddle blocks
    rows = source(write(tmp_path, ROWS, form))
    assert len(rows) == 3
    samples = [rows[i] for i in range(3)]
    assert [sample.id for sample in samples] == ["a", "7", "2"]
    assert samples[0].messages[1].text() == "A cat ü 🐈."
    assert [message.train for message in samples[1].messages] == [False, True, False, True]
    assert samples[2].messages[0].parts == (TextPart("Über"), ImagePart(0))
    assert samples[1].images == () and len(samples[2].images) == 1
    assert len(source(write(tmp_path, ROWS, form), limit=2)) == 2
    assert pickle.loads(pickle.dumps(rows))[0] == samples[0]  # noqa: S301  # as a loader worker gets it


@pytest.mark.parametrize(
    ("text", "num_images", "parts"),
    [
        ("<image>\nWhat?", 1, (ImagePart(0), TextPart("What?"))),
        ("What?\n<image>", 1, (TextPart("What?"), ImagePart(0))),
        (
            "Is <image> like <image>?",
            2,
            (TextPart("Is"), ImagePart(0), TextPart("like"), ImagePart(1), TextPart("?")),
        ),
        ("<image>", 1, (ImagePart(0),)),
        ("No mark ", 2, (ImagePart(0), ImagePart(1), TextPart("No mark "))),
        ("", 1, (ImagePart(0),)),
    ],
)
def test_marks_become_parts_once(tmp_path: Path, text: str, num_images: int, parts: tuple[Any, ...]) -> None:
    row = {
        "image": [f"{i}.png" for i in range(num_images)],
        "conversations": talk(text, "Yes, <image> it is."),
    }
    sample = source(write(tmp_path, [row]))[0]
    assert sample.messages[0].parts == parts
    assert sample.messages[1].parts == (
        TextPart("Yes, <image> it is."),
    )  # an answer is text, whatever it says


def test_an_opening_answer_is_left_out_and_system_is_kept(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "gpt", "value": "…"}, *talk("Q", "A")]},
        {"conversations": [{"from": "system", "value": "S"}, *talk("Q", "A")]},
    ]
    data = source(write(tmp_path, rows))
    assert [message.role for message in data[0].messages] == ["user", "assistant"]
    assert [message.role for message in data[1].messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("row", "reason", "names"),
    [
        ({"id": 1, "image": "x.png"}, "no_conversations", "conversations"),
        ({"conversations": []}, "no_conversations", "conversations"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown_role", "'robot'.*known: human"),
        ({"conversations": [{"from": "human"}]}, "row_malformed", "conversations.0"),
        ({"conversations": [{"from": "human", "value": 3}]}, "row_malformed", "conversations.0"),
        ({"conversations": talk("Q", " ")}, "empty_answer", "conversations.1"),
        ({"conversations": talk("<image>\nQ", "A")}, "image_marks", "1 <image> marks.*0 pictures"),
        ({"image": "x", "conversations": talk("<image><image>", "A")}, "image_marks", "2 <image> marks"),
        ({"image": ["x", "y"], "conversations": talk("<image>", "A")}, "image_marks", "1 <image> marks"),
        ({"image": 3, "conversations": talk("Q", "A")}, "row_malformed", "'image'.*3"),
        ({"image": "../../x.png", "conversations": talk("Q", "A")}, "image_outside_root", "image_root"),
        ({"conversations": talk("Q \ud800", "A")}, "row_malformed", "not valid text"),
        ("text", "row_malformed", "expected an object"),
    ],
)
def test_a_bad_row_is_rejected_by_name(tmp_path: Path, row: Any, reason: str, names: str) -> None:
    data = source(write(tmp_path, [ROWS[0], row]))
    assert data[0].id == "a"
    with pytest.raises(SampleRejected, match=rf"array\.json, row 1.*{names}") as caught:
        data[1]
    assert caught.value.reason == reason


def test_a_broken_line_is_one_row_a_broken_file_is_an_error(tmp_path: Path) -> None:
    lines = tmp_path / "some.jsonl"
    lines.write_text(json.dumps(ROWS[0]) + '\n{"id": broken\n')
    data = source(lines)
    assert len(data) == 2
    with pytest.raises(SampleRejected, match=r"some\.jsonl, row 1: not valid JSON"):
        data[1]

    for name, text in {
        "text.json": "hello",
        "cut.json": json.dumps(ROWS)[:-20],
        "empty.json": "",
        "norows.json": "[]",
        "object.json": '{"annotations": [{"image_id": 1, "caption": "x"}]}',
        "pretty.json": json.dumps({"annotations": []}, indent=1),
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=name):
            source(tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.json"):
        source(tmp_path / "absent.json")


def test_images_lie_below_the_root(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (3, 2)).save(folder / "x.png")
    row = {"image": "x.png", "conversations": talk("Q", "A")}
    sample = source(write(tmp_path, [row]), image_root=str(folder))[0]
    assert sample.images[0].load().size == (3, 2)
