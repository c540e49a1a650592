"""What every file of data/sources/ keeps: a new one is tested as soon as it has a case here."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prismcap.configs.registry import available, component_options
from prismcap.configs.schema.base import Component
from prismcap.data.schema import ImagePart, Sample
from prismcap.data.sources._contract import FileSource, Source, SourceContext

Options = dict[str, Any]


def save_picture(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 3), (9, 9, 9)).save(path)


def llava_json(folder: Path) -> Options:
    save_picture(folder / "a.jpg")
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    (folder / "rows.json").write_text(json.dumps([{"image": "a.jpg", "conversations": turns}] * 3))
    return {"path": str(folder / "rows.json")}


def minigpt4_json(folder: Path) -> Options:
    save_picture(folder / "image" / "a.jpg")
    (folder / "rows.json").write_text(
        json.dumps({"annotations": [{"image_id": "a", "caption": "A cat."}] * 3})
    )
    return {"path": str(folder / "rows.json")}


def owl_json(folder: Path) -> Options:
    save_picture(folder / "a.jpg")
    shown = {"image": ["a.jpg"], "text": "S\nHuman: <image>\nHuman: q\nAI: a"}
    rows = [shown, {"text": "Human: q\nAI: a"}]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"path": str(folder / "rows.jsonl")}


def webdataset(folder: Path) -> Options:
    save_picture(folder / "a.jpg")
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i in range(3):
            tar.add(folder / "a.jpg", f"{i}.jpg")
            info = tarfile.TarInfo(f"{i}.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"a"))
    return {"path": str(folder / "0.tar")}


CASES: dict[str, Callable[[Path], Options]] = {
    "llava_json": llava_json,
    "minigpt4_json": minigpt4_json,
    "owl_json": owl_json,
    "webdataset": webdataset,
    "scenes": lambda _: {"num_scenes": 3},
    "stamps": lambda _: {},
}


def build(name: str, options: Options) -> Source:
    module, checked = component_options("source", Component(name=name, **options))
    source: Source = module.build(checked, SourceContext(seed=4))
    return source


@pytest.fixture(params=available("source"))
def case(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Options]:
    name: str = request.param
    assert name in CASES, f"give the source {name} a case in this file"
    options = CASES[name](tmp_path)
    if "path" in options:  # drawings are read from the cache that there is
        monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))
    return name, options


def test_samples_are_whole_and_the_same_every_time(case: tuple[str, Options]) -> None:
    source = build(*case)
    assert len(source) > 0
    samples = [source[i] for i in range(min(3, len(source)))]
    assert samples == [source[i] for i in reversed(range(len(samples)))][::-1], "a pure function of the index"
    assert samples == [build(*case)[i] for i in range(len(samples))]
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301  # as a loader worker gets it
    assert samples == [copy[i] for i in range(len(samples))]
    for sample in samples:
        check(sample)


def check(sample: Sample) -> None:
    assert isinstance(sample.id, str) and sample.id and sample.source
    roles = [message.role for message in sample.messages]
    turns = roles[1:] if roles[0] == "system" else roles
    assert turns == ["user", "assistant"] * (len(turns) // 2) and turns
    for message in sample.messages:
        assert message.train == (message.role == "assistant")
        assert message.role == "user" or not any(isinstance(part, ImagePart) for part in message.parts)
        assert message.role == "user" or message.text().strip()
    shown = [part.index for m in sample.messages for part in m.parts if isinstance(part, ImagePart)]
    assert shown == list(range(len(sample.images)))
    for image in sample.images:
        assert image.load().mode == "RGB"
        assert image.fingerprint() == image.fingerprint() and hash(image) == hash(image)


def test_file_sources_know_their_files(case: tuple[str, Options]) -> None:
    name, options = case
    source = build(name, options)
    assert isinstance(source, FileSource) == ("path" in options), "what is read from files says which"
    if isinstance(source, FileSource):
        again, fewer = build(name, options), build(name, {**options, "limit": 1})
        assert isinstance(again, FileSource) and isinstance(fewer, FileSource)
        assert source.fingerprint() == again.fingerprint() != fewer.fingerprint()
        assert len(fewer) == 1
