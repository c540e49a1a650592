"""Image-text pairs in tar shards: any pair at once, an index made once, and nothing ever extracted."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prismcap.data.schema import DataError, ImagePart, SampleRejected, TextPart
from prismcap.data.sources import _tar_index, webdataset
from prismcap.data.sources._contract import SourceContext


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(width: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, 2), (width, 0, 0)).save(stream, kind)
    return stream.getvalue()


def write(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard(path: Path, first: int, num: int) -> Path:
    """Pairs first .. first + num - 1; pair i has a picture i + 1 wide and the caption `Caption i.`"""
    members: dict[str, bytes] = {}
    for i in range(first, first + num):
        members[f"{i:05d}.jpg"] = picture(i + 1, "JPEG")
        members[f"{i:05d}.json"] = json.dumps({"caption": f"json {i}", "long": f"Long {i}"}).encode()
        members[f"{i:05d}.txt"] = f"Caption {i}.\n".encode()
    return write(path, members)


def source(path: Path | str | list[str], pixels: int = 10**6, seed: int = 0, **options: Any) -> Any:
    value = str(path) if isinstance(path, Path) else path
    made = webdataset.Options.model_validate({"path": value, **options})
    return webdataset.build(made, SourceContext(seed, pixels))


def test_any_pair_at_once_in_any_order(tmp_path: Path) -> None:
    shard(tmp_path / "a" / "00000.tar", 0, 4)
    shard(tmp_path / "a" / "00001.tar", 4, 3)
    data = source(tmp_path / "a")
    assert len(data) == 7
    for i in (6, 0, 4, 3, 5):
        sample = data[i]
        assert sample.messages[0].parts == (ImagePart(0),)
        assert sample.messages[1].text() == f"Caption {i}." and sample.messages[1].train
        assert sample.images[0].load().size == (i + 1, 2)
        assert sample.images[0].height_width() == (2, i + 1)
        assert sample.id == f"{'00000' if i < 4 else '00001'}/{i:05d}"
    assert pickle.loads(pickle.dumps(data))[5] == data[5]  # noqa: S301  # as a loader worker gets it
    assert data[2].images[0] == data[2].images[0] != data[3].images[0]
    prints = [data[i].images[0].fingerprint() for i in range(7)]
    assert len(set(prints)) == 7
    with pytest.raises(IndexError):
        data[7]


def test_where_a_caption_comes_from(tmp_path: Path) -> None:
    both = shard(tmp_path / "both.tar", 0, 2)
    assert source(both)[1].messages[1].text() == "Caption 1."
    assert source(both, json_key="long")[1].messages[1].text() == "Long 1"
    alone = write(tmp_path / "alone.tar", {"x.png": picture(1), "x.json": b'{"caption": "in the json"}'})
    assert source(alone)[0].messages[1].text() == "in the json"
    asked = source(both, instructions=["Describe it.", "What is it?"])
    assert asked[0].messages[0].parts[0] == ImagePart(0)
    assert isinstance(asked[0].messages[0].parts[1], TextPart)


def test_paths_may_be_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        shard(tmp_path / "cc" / f"{i:02d}.tar", i, 1)
    whole = [source(tmp_path / "cc")[i].messages[1].text() for i in range(12)]
    assert whole == [f"Caption {i}." for i in range(12)]
    monkeypatch.chdir(tmp_path)
    patterns: list[tuple[Any, list[int]]] = [
        ("cc/{03..10}.tar", list(range(3, 11))),
        ("cc/0*.tar", list(range(10))),
        ("cc/{0..1}{0..1}.tar", [0, 1, 10, 11]),
        (["cc/07.tar", "cc/{01..02}.tar"], [7, 1, 2]),
    ]
    for pattern, numbers in patterns:
        data = source(pattern)
        found = [data[i].messages[1].text() for i in range(len(data))]
        assert found == [f"Caption {i}." for i in numbers], pattern
    assert len(source("cc", limit=5)) == 5
    for pattern, names in {
        "cc/x*.tar": r"no tar file at 'cc/x\*\.tar'",
        "cc/{09..13}.tar": r"cc/12\.tar: cannot be read",
        "cc/{5..2}.tar": r"\{5\.\.2\}.*is empty",
    }.items():
        with pytest.raises(DataError, match=names):
            source(pattern)
    with pytest.raises(DataError, match="empty list"):
        source([])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_and_names_of_any_length(tmp_path: Path, form: int) -> None:
    long = "d" * 90 + "/" + "n" * 90 if form == tarfile.USTAR_FORMAT else "d" * 150 + "/" + "ü" * 150
    folders = {f"{long}.jpg": picture(3, "JPEG"), f"{long}.txt": b"long"}
    other = {"./a.b.png": picture(9), "./a.jpeg": picture(4, "JPEG"), "./a.txt": b"dot", "README.md": b"?"}
    data = source(write(tmp_path / "x.tar", folders | other, form))
    assert len(data) == 2
    assert [data[i].messages[1].text() for i in range(2)] == ["long", "dot"]
    assert [data[i].images[0].load().size[0] for i in range(2)] == [3, 4]
    assert data[0].id == f"x/{long}"


def test_members_need_not_stand_together(tmp_path: Path) -> None:
    members = {"b.txt": b"b", "a.jpg": picture(1, "JPEG"), "b.jpg": picture(2, "JPEG"), "a.txt": b"a"}
    data = source(write(tmp_path / "x.tar", members))
    found = {data[i].messages[1].text(): data[i].images[0].load().size[0] for i in range(2)}
    assert found == {"a": 1, "b": 2}


def blip(caption: str, max_words: int) -> str:
    """pre_caption of LAVIS's BlipCaptionProcessor, from its steps."""
    caption = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
    caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
    return " ".join(caption.split(" ")[:max_words])


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="aBÄ?',-.!\"()*#:;~ ", max_size=30))
def test_captions_are_normalised_as_blip_does(caption: str) -> None:
    assert webdataset.normalised(caption) == blip(caption, 1000)


def test_normalise_and_max_words_reach_the_caption(tmp_path: Path) -> None:
    text = "A \"Big\" Dog:  it's (very) happy, isn't it?!"
    path = write(tmp_path / "x.tar", {"x.png": picture(1), "x.txt": text.encode()})
    assert source(path)[0].messages[1].text() == text
    whole = source(path, normalise=True)[0].messages[1].text()
    assert whole == "a big dog it's very happy, isn't it?" == blip(text, 50)
    assert (
        source(path, normalise=True, max_words=4)[0].messages[1].text() == blip(text, 4) == "a big dog it's"
    )
    prints = {
        source(path, **options).fingerprint()
        for options in ({}, {"normalise": True}, {"max_words": 3}, {"seed": 1}, {"instructions": ["a"]})
    }
    assert len(prints) == 5


JPEG = picture(5, "JPEG")


@pytest.mark.parametrize(
    ("members", "reason", "names"),
    [
        ({"x.jpg": JPEG}, "no_caption", r"member x: no \.txt or \.json beside the picture"),
        ({"x.txt": b"a"}, "image_missing", r"member x: no picture \(jpg, png, webp\)"),
        ({"x.jpg": JPEG, "x.txt": b" \n"}, "empty_answer", r"member x\.txt"),
        ({"x.jpg": JPEG, "x.txt": b"\xff\xfe"}, "row_malformed", r"member x\.txt: not UTF-8"),
        (
            {"x.jpg": JPEG, "x.txt": b"a" * (1 << 20) + b"b"},
            "row_malformed",
            r"member x\.txt: a text of 1048577",
        ),
        ({"x.jpg": JPEG, "x.json": b"{"}, "row_malformed", r"member x\.json: not valid JSON"),
        ({"x.jpg": JPEG, "x.json": b"[]"}, "row_malformed", r"member x\.json, key 'caption'.*found None"),
        (
            {"x.jpg": JPEG, "x.json": b'{"a": 1}'},
            "row_malformed",
            r"member x\.json, key 'caption'.*keys \['a'\]; json_key",
        ),
        (
            {"x.jpg": JPEG, "x.json": b'{"caption": 3}'},
            "row_malformed",
            r"member x\.json, key 'caption'.*found 3",
        ),
    ],
)
def test_a_pair_that_cannot_be_used_is_rejected_by_name(
    tmp_path: Path, members: dict[str, bytes], reason: str, names: str
) -> None:
    good = {"a.jpg": JPEG, "a.txt": b"good"}
    data = source(write(tmp_path / "00007.tar", good | members))
    assert len(data) == 2 and data[0].messages[1].text() == "good"
    with pytest.raises(SampleRejected, match=rf"00007\.tar, {names}") as caught:
        data[1]
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [(JPEG[: len(JPEG) // 2], "image_corrupt"), (b"no picture", "image_corrupt"), (b"", "image_corrupt")],
)
def test_a_broken_picture_is_a_rejected_sample(tmp_path: Path, content: bytes, reason: str) -> None:
    data = source(write(tmp_path / "x.tar", {"bad.jpg": content, "bad.txt": b"text", "c.txt": b"c"}))
    image = data[0].images[0]
    with pytest.raises(SampleRejected, match=r"x\.tar, member bad\.jpg") as caught:
        image.load()
    assert caught.value.reason == reason


def test_a_picture_is_bounded_and_a_shard_that_goes_is_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", 100, 2)
    with pytest.raises(SampleRejected, match=r"member 00100\.jpg.*max_image_pixels=100") as caught:
        source(path, pixels=100)[0].images[0].load()
    assert caught.value.reason == "image_too_large"
    data = source(path)
    image = data[1].images[0]
    os.truncate(path, 1000)
    with pytest.raises(SampleRejected, match=r"member 00101\.jpg: cut off: the shard has changed") as caught:
        image.load()
    assert caught.value.reason == "image_corrupt"
    path.unlink()
    with pytest.raises(SampleRejected, match=r"member 00101\.jpg: cannot be read") as caught:
        image.load()
    assert caught.value.reason == "image_missing"
    with pytest.raises(SampleRejected, match=r"member 00101\.txt: cannot be read") as caught:
        data[1]
    assert caught.value.reason == "caption_unreadable", "there may be one"


def test_nothing_is_extracted_and_links_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    path = tmp_path / "in" / "x.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in ("../../up.jpg", "/abs.jpg", "l.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(JPEG)
            tar.addfile(info, io.BytesIO(JPEG))
        for name, kind in (("l.txt", tarfile.SYMTYPE), ("../../up.txt", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
        info = tarfile.TarInfo("/abs.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abs"))
    before = sorted(tmp_path.rglob("*"))
    data = source(path)
    texts: list[str] = []
    for i in range(len(data)):
        try:
            sample = data[i]
        except SampleRejected as error:
            assert error.reason == "no_caption"
        else:
            texts.append(sample.messages[1].text())
            assert sample.images[0].load().size == (5, 2)
    assert len(data) == 3 and texts == ["abs"]
    after = [found for found in sorted(tmp_path.rglob("*")) if "cache" not in found.parts]
    assert after == [found for found in before if "cache" not in found.parts]


def damaged(path: Path, how: str) -> Path:
    """A shard of three pairs that is not whole."""
    whole = shard(path, 0, 3).read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    changed = {
        "cut in a member": whole[: last.offset_data + 3],
        "cut in a header": whole[: last.offset + 100],
        "no end": whole[: last.offset_data + 512],
        "a bad header": whole[: last.offset] + b"?" * 512 + whole[last.offset + 512 :],
        "empty": b"",
        "text": b"hello" * 500,
    }[how]
    path.write_bytes(changed)
    return path


@pytest.mark.parametrize(
    "how", ["cut in a member", "cut in a header", "no end", "a bad header", "empty", "text"]
)
def test_a_damaged_shard_is_an_error_and_never_a_shorter_one(tmp_path: Path, how: str) -> None:
    path = damaged(tmp_path / "00003.tar", how)
    with pytest.raises(DataError, match=r"00003\.tar: not a whole tar file"):
        source(path)


def test_compressed_shards_and_doubled_members_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(b""))
    with pytest.raises(DataError, match=r"x\.tar\.gz: not a whole tar file.*gunzip"):
        source(path)
    double = tmp_path / "double.tar"
    with tarfile.open(double, "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.jpg")
            info.size = len(JPEG)
            tar.addfile(info, io.BytesIO(JPEG))
    with pytest.raises(DataError, match=r"double\.tar: the member 'a\.jpg' is there twice"):
        source(double)


def test_a_shard_without_pairs_is_no_error_beside_others(tmp_path: Path) -> None:
    empty = write(tmp_path / "a.tar", {})
    full = shard(tmp_path / "b.tar", 0, 2)
    data = source([str(empty), str(full), str(empty)])
    assert [data[i].messages[1].text() for i in range(len(data))] == ["Caption 0.", "Caption 1."]
    assert len(source(empty)) == 0


def test_a_shard_is_scanned_once_and_again_when_it_changes(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scanned: list[str] = []
    scan = _tar_index._scan

    def counted(path: Path) -> Any:
        scanned.append(path.name)
        return scan(path)

    monkeypatch.setattr(_tar_index, "_scan", counted)
    paths = [shard(tmp_path / f"{i}.tar", i, 2) for i in range(3)]
    pattern = str(tmp_path / "{0..2}.tar")
    first = source(pattern)
    assert sorted(scanned) == ["0.tar", "1.tar", "2.tar"]
    scanned.clear()
    assert source(pattern).fingerprint() == first.fingerprint() and not scanned
    assert source(paths[1]) and not scanned, "each shard has an index of its own"
    shard(paths[1], 1, 4)
    os.utime(paths[1], ns=(1, 1))
    again = source(pattern)
    assert scanned == ["1.tar"] and len(again) == 8 and again.fingerprint() != first.fingerprint()
    scanned.clear()
    kept = sorted((own_cache / "webdataset").iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        for path in paths:
            source(path)
    assert len(scanned) <= 1 and ("damaged" in caplog.text) == bool(scanned)


def _build(pattern: str, barrier: Any) -> None:
    barrier.wait()
    data = source(pattern)
    assert [data[i].messages[1].text() for i in range(len(data))] == [f"Caption {i}." for i in range(60)]


def test_two_processes_may_index_at_once(tmp_path: Path, own_cache: Path) -> None:
    for i in range(20):
        shard(tmp_path / f"{i:02d}.tar", 3 * i, 3)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    pattern = str(tmp_path / "{00..19}.tar")
    processes = [context.Process(target=_build, args=(pattern, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list((own_cache / "webdataset").iterdir())) == 20, "nothing is left lying about"


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "x.tar", 0, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_tar_index.np, "save", full)
    with pytest.raises(DataError, match=r"No space left.*PRISMCAP_CACHE"):
        source(path)
