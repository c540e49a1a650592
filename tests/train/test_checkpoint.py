"""Checkpoints on disk: whole or not there, damage seen, room for the next one."""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from prismcap.model.weights import save_weights
from prismcap.train import checkpoint as checkpoints
from prismcap.train.checkpoint import DamagedError, Manifest, SaveError, newest, save_checkpoint, verify
from prismcap.train.distributed import Ranks
from prismcap.train.random_state import load_random_state, save_random_state


def manifest(step: int) -> Manifest:
    return Manifest("align", step, 1, "torch", {"seed": 1, "clip": float("inf")}, {"too_long": 2})


def put(stage_dir: Path, step: int) -> Path:
    def write(folder: Path) -> None:
        save_weights(folder / "weights.safetensors", {"a": torch.full((64,), float(step))})
        (folder / "inner").mkdir()
        (folder / "inner" / "other.bin").write_bytes(bytes([step]) * 50)

    return save_checkpoint(stage_dir, checkpoints.step_name(step), manifest(step), write, Ranks())


def test_round_trip(tmp_path: Path) -> None:
    folder = put(tmp_path, 100)
    assert folder.name == "step-000100"
    found = verify(folder)
    assert set(found.files) == {"weights.safetensors", "inner/other.bin"}
    assert (found.step, found.config, found.rejected) == (100, manifest(100).config, {"too_long": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000100"]


def change_byte(folder: Path) -> None:
    path = folder / "inner" / "other.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def cut_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def cut_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-30])


def edit_manifest(folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(values | {"step": 3}))


DAMAGES: list[Callable[[Path], None]] = [
    change_byte,
    cut_weights,
    cut_manifest,
    edit_manifest,
    lambda folder: (folder / "inner" / "other.bin").unlink(),
    lambda folder: (folder / "extra").touch(),
    lambda folder: (folder / "manifest.json").unlink(),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_and_the_one_before_is_taken(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, 1)
    damage(put(tmp_path, 2))
    with pytest.raises(DamagedError, match="step-000002"):
        verify(tmp_path / "step-000002")
    found = newest(tmp_path)
    assert found is not None
    assert found[1].step == 1
    assert "step-000002" in caplog.text
    assert "damaged" in caplog.text
    # the run comes to that step again, and writes it anew
    put(tmp_path, 2)
    assert verify(tmp_path / "step-000002").step == 2


def test_pruning_keeps_the_newest_and_only_once_it_is_whole(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step)
    change_byte(put(tmp_path, 4))
    with pytest.raises(DamagedError):
        checkpoints.prune(tmp_path, keep=1)
    assert len(checkpoints.step_folders(tmp_path)) == 4
    put(tmp_path, 4)
    checkpoints.prune(tmp_path, keep=2)
    assert [path.name for path in checkpoints.step_folders(tmp_path)] == ["step-000003", "step-000004"]


def test_the_millionth_step_is_newer_than_the_one_before(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999):
        save_checkpoint(tmp_path, checkpoints.step_name(step), manifest(step), lambda _: None, Ranks())
    (tmp_path / "step-000001.copy").mkdir()  # not one of ours
    found = newest(tmp_path)
    assert found is not None and found[1].step == 1_000_000
    checkpoints.prune(tmp_path, keep=1)
    assert [path.name for path in checkpoints.step_folders(tmp_path)] == ["step-1000000"]


def free_space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def test_without_room_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)
    free_space(monkeypatch, 99)
    written: list[Path] = []
    with pytest.raises(SaveError, match=r"step-000002: no space left"):
        save_checkpoint(tmp_path, "step-000002", manifest(2), written.append, Ranks(), needed_bytes=100)
    assert written == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    save_checkpoint(tmp_path, "step-000002", manifest(2), written.append, Ranks(), needed_bytes=99)
    assert len(written) == 1


@pytest.mark.parametrize(("free", "words"), [(0, "no space left"), (10**12, "cannot be written")])
def test_torchs_zip_writer_failing_is_a_failed_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, words: str
) -> None:
    from prismcap.train.engines.deepspeed import DeepSpeedEngine

    def full_disk(*_: object, **__: object) -> None:
        torch.save({"a": torch.zeros(100_000)}, "/dev/full")

    class Writer:
        save = full_disk

    engine = object.__new__(DeepSpeedEngine)
    writer: Any = Writer()
    engine.engine = SimpleNamespace(
        checkpoint_engine=writer, save_checkpoint=lambda *_, **__: writer.save({}, "unused")
    )
    engine.ranks = Ranks()
    free_space(monkeypatch, free)
    with pytest.raises(SaveError, match=words):
        save_checkpoint(tmp_path, "step-000001", manifest(1), engine.save, Ranks())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_earlier_checkpoints(tmp_path: Path, code: int) -> None:
    put(tmp_path, 1)

    def write(folder: Path) -> None:
        (folder / "part.bin").write_bytes(b"x" * 100)
        raise OSError(code, "injected")

    with pytest.raises(SaveError) as caught:
        save_checkpoint(tmp_path, "step-000002", manifest(2), write, Ranks(), needed_bytes=5_000_000)
    text = str(caught.value)
    assert str(tmp_path / "step-000002") in text
    assert ("no space left" in text and "5.0 MB" in text) == (code == errno.ENOSPC)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert verify(tmp_path / "step-000001").step == 1


def test_a_file_size_limit_of_the_system_ends_in_the_same_error(tmp_path: Path) -> None:
    # a real short write, by a limit that every user may set; it lies between the two checkpoints' sizes
    code = """
import resource, sys, torch
from pathlib import Path
from prismcap.model.weights import save_weights
from prismcap.train.checkpoint import Manifest, SaveError, save_checkpoint, verify
from prismcap.train.distributed import Ranks
folder = Path(sys.argv[1])
def put(step, size):
    write = lambda f: save_weights(f / "weights.safetensors", {"a": torch.zeros(size)})
    manifest = Manifest("s", step, 1, "torch", {}, {})
    save_checkpoint(folder, f"step-{step:06d}", manifest, write, Ranks(), size * 4)
put(1, 1000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    put(2, 1_000_000)
except SaveError as error:
    print(error)
verify(folder / "step-000001")
print(sorted(path.name for path in folder.iterdir()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "step-000002: no space left" in done.stdout, done.stdout
    assert "4.0 MB" in done.stdout
    assert done.stdout.splitlines()[-1] == "['step-000001']"


def test_a_file_that_was_written_short_is_never_put_in_place(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        save_weights(folder / "weights.safetensors", {"a": torch.zeros(64)})
        cut_weights(folder)

    with pytest.raises(SaveError, match="not written whole"):
        save_checkpoint(tmp_path, "step-000001", manifest(1), write, Ranks())
    assert list(tmp_path.iterdir()) == []


def test_random_states_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(), float(np.random.rand()), float(torch.rand(1))]

    draw()
    save_random_state(tmp_path, rank=0)
    expected = [draw(), draw()]
    load_random_state(tmp_path, rank=0)
    assert [draw(), draw()] == expected
