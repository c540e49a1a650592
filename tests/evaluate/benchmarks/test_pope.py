"""POPE's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prismcap.configs.errors import ConfigError, DataError
from prismcap.evaluate.benchmarks._contract import Benchmark

Build = Callable[..., Benchmark]
ROW = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg")
    Image.new("RGB", (4, 3), (9, 9, 9)).save(tmp_path / "b.jpg")

    def write(**files: list[dict[str, Any]]) -> dict[str, Any]:
        for setting, rows in files.items():
            (tmp_path / f"{setting}.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        paths = {setting: str(tmp_path / f"{setting}.json") for setting in files}
        return {"files": paths, "image_root": str(tmp_path)}

    return write


def test_settings_are_kept_apart(build: Build, options: Callable[..., dict[str, Any]]) -> None:
    given = options(
        random=[ROW, {**ROW, "question_id": 2, "image": "b.jpg"}], adversarial=[{**ROW, "label": "no"}]
    )
    pope = build("pope", **given)
    found = [pope[i] for i in range(len(pope))]
    assert [one.id for one in found] == ["random/1", "random/2", "adversarial/1"]
    assert [one.answer for one in found] == ["yes", "yes", "no"]
    assert [one.categories["setting"] for one in found] == ["random", "random", "adversarial"]
    assert all(one.kind == "yes_no" and one.options == () and one.text == ROW["text"] for one in found)
    assert found[0].cluster == found[2].cluster != found[1].cluster
    assert found[0].images == found[2].images
    assert found[1].images[0].load().getpixel((0, 0)) == (9, 9, 9)
    other = build("pope", **options(random=[{**ROW, "label": "no"}], adversarial=[ROW]))
    assert other.checksum != pope.checksum


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, r"random\.json, row 1, key 'label': expected yes or no, found 'maybe'"),
        ({"text": ""}, r"row 1, key 'text': expected a text"),
        ({"image": None}, r"row 1, key 'image': expected a text"),
        ({"question_id": 1}, r"row 1, key 'question_id': 'random/1' is that of row 0 too"),
        ({"question_id": None}, r"row 1, key 'question_id': expected a number"),
        ({"image": "../a.jpg"}, r"row 1, key 'image': .*outside of the data root"),
    ],
)
def test_bad_rows_are_named(
    build: Build, options: Callable[..., dict[str, Any]], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build("pope", **options(random=[ROW, {**ROW, "question_id": 2, **change}]))


def test_settings_have_names(build: Build, options: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="files"):
        build("pope", **options(easy=[ROW]))
