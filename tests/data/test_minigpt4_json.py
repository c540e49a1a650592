"""MiniGPT-4's second-stage file: pictures by name, each asked for by one of the original's instructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prismcap.configs.schema.base import Component
from prismcap.data.schema import DataError, ImagePart, SampleRejected
from prismcap.data.sources import minigpt4_json
from prismcap.data.sources._contract import SourceContext
from prismcap.data.templates import minigpt4 as template

# prompts/alignment.txt of Vision-CAIR/MiniGPT-4, without its marks
ORIGINAL = {
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
}
ROWS: list[dict[str, Any]] = [{"image_id": i if i % 2 else str(i), "caption": f"A {i}."} for i in range(200)]


def write(folder: Path, content: Any) -> Path:
    path = folder / "filter_cap.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def source(path: Path, seed: int = 0, **options: Any) -> minigpt4_json.MiniGPT4Json:
    return minigpt4_json.build(minigpt4_json.Options(path=str(path), **options), SourceContext(seed))


def test_an_annotation_is_a_picture_an_instruction_and_a_caption(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "image" / "7.jpg")
    data = source(write(tmp_path, {"annotations": ROWS}))
    assert len(data) == 200
    sample = data[7]
    user, answer = sample.messages
    assert sample.id == "7" and sample.images[0].load().size == (3, 2)
    assert user.parts[0] == ImagePart(0), "the picture stands before the instruction"
    assert user.text() in ORIGINAL
    assert (answer.text(), answer.train) == ("A 7.", True)
    # its prompt_template is `###Human: {} ###Assistant: `, the marks of the picture are in the instruction
    segments = template.build(template.Options()).render(sample.messages)
    text = "".join("<ImageHere>" if item.image is not None else item.text for item in segments)
    assert text == f"###Human: <Img><ImageHere></Img> {user.text()} ###Assistant: A 7.###"


def test_instructions_are_drawn_by_id_and_seed(tmp_path: Path) -> None:
    path = write(tmp_path, {"annotations": ROWS})
    asked = [source(path)[i].messages[0].text() for i in range(200)]
    assert set(asked) == ORIGINAL == set(minigpt4_json.INSTRUCTIONS)
    assert all(30 < asked.count(text) < 70 for text in ORIGINAL)
    assert asked == [source(path)[i].messages[0].text() for i in range(200)]
    # by id and not by place: without the first rows, the others are asked as before
    (tmp_path / "later").mkdir()
    later = source(write(tmp_path / "later", {"annotations": ROWS[50:]}))
    assert [later[i].messages[0].text() for i in range(150)] == asked[50:]
    assert asked != [source(path, seed=1)[i].messages[0].text() for i in range(200)]
    own = source(path, instructions=["Look:"])
    assert {own[i].messages[0].text() for i in range(9)} == {"Look:"}
    silent = source(path, instructions=[])
    assert silent[0].messages[0].parts == (ImagePart(0),)


def test_what_lengths_depend_on_is_in_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path, {"annotations": ROWS})
    same, again = source(path).fingerprint(), source(path).fingerprint()
    others = [
        source(path, seed=1),
        source(path, instructions=["Look:"]),
        source(path, limit=9),
        source(path, image_root=str(tmp_path)),
    ]
    assert same == again and len({same, *(other.fingerprint() for other in others)}) == 5
    assert len(source(path, limit=9)) == 9


@pytest.mark.parametrize(
    ("row", "reason", "names"),
    [
        ({"image_id": "1"}, "row_malformed", "key 'caption': expected text, found None"),
        ({"image_id": "1", "caption": 3}, "row_malformed", "key 'caption': expected text, found 3"),
        ({"image_id": "1", "caption": " "}, "empty_answer", "key 'caption'"),
        ({"image_id": "1", "caption": "a\ud800"}, "row_malformed", "key 'caption': not valid text"),
        ({"caption": "a"}, "row_malformed", "key 'image_id'.*without .jpg, found None"),
        ({"image_id": "", "caption": "a"}, "row_malformed", "key 'image_id'"),
        ({"image_id": True, "caption": "a"}, "row_malformed", "key 'image_id'.*True"),
        ({"image_id": "../../x", "caption": "a"}, "image_outside_root", "key 'image_id'.*image_root"),
        ("a", "row_malformed", "expected {image_id, caption}, found 'a'"),
    ],
)
def test_a_bad_row_is_rejected_by_name(tmp_path: Path, row: Any, reason: str, names: str) -> None:
    data = source(write(tmp_path, {"annotations": [ROWS[0], row]}))
    assert data[0].id == "0"
    with pytest.raises(SampleRejected, match=rf"filter_cap\.json, annotations\.1.*{names}") as caught:
        data[1]
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", "not valid JSON"),
        ("[]", "annotations.*found a list"),
        ('{"images": []}', r"found the keys \['images'\].*llava_json"),
        ('{"annotations": {}}', "expected"),
        ('{"annotations": []}', "'annotations': no rows"),
    ],
)
def test_a_file_of_another_shape_is_an_error(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"some\.json.*{names}"):
        source(path)
    with pytest.raises(DataError, match=r"absent\.json.*Check the source's path"):
        source(tmp_path / "absent.json")


def test_a_missing_picture_is_rejected_when_it_is_read(tmp_path: Path) -> None:
    sample = source(write(tmp_path, {"annotations": ROWS}))[3]
    with pytest.raises(SampleRejected, match=r"image/3\.jpg") as caught:
        sample.images[0].load()
    assert caught.value.reason == "image_missing"


def test_options_reach_it_from_a_config(tmp_path: Path) -> None:
    item = Component(name="minigpt4_json", path=str(tmp_path), instructions=["a", "b"])
    options = minigpt4_json.Options.model_validate(item.options)
    assert options.instructions == ("a", "b")
