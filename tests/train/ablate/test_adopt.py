"""Stages taken over from another run: whole or not at all, and gone on with as if trained here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prismcap.configs.schema.run import RunConfig
from prismcap.train.ablate.adopt import adopt, is_whole
from prismcap.train.checkpoint import DamagedError, file_hash
from prismcap.train.run import run_training

Make = Callable[..., RunConfig]
WEIGHTS = "align/final/weights.safetensors"


def stages_in_log(run_dir: Path) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [(record["stage"], record["step"]) for record in records]


def inode(path: Path) -> int:
    return path.stat().st_ino


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    run = shutil.copytree(finished, tmp_path / "damaged")
    path = run / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    return run


def test_a_stage_comes_with_its_records_and_takes_no_room(finished: Path, tmp_path: Path) -> None:
    adopt(finished, tmp_path / "cell", ["align"])
    assert is_whole(tmp_path / "cell/align/final")
    assert sorted(path.name for path in (tmp_path / "cell").iterdir()) == ["align", "log.jsonl"]
    assert inode(tmp_path / "cell" / WEIGHTS) == inode(finished / WEIGHTS)
    assert stages_in_log(tmp_path / "cell") == [("align", step) for step in range(1, 5)]


def test_what_was_measured_while_a_stage_trained_comes_too(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    lines = [json.dumps({"stage": stage, "step": 2, "figures": {}}) for stage in ("align", "instruct")]
    (run / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    adopt(run, tmp_path / "cell", ["align"])
    assert (tmp_path / "cell/evaluations.jsonl").read_text() == f"{lines[0]}\n"


def test_without_hard_links_it_is_copied(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    adopt(finished, tmp_path / "cell", ["align"])
    assert is_whole(tmp_path / "cell/align/final")
    assert inode(tmp_path / "cell" / WEIGHTS) != inode(finished / WEIGHTS)


def test_what_is_damaged_is_not_taken_and_what_is_there_damaged_is_replaced(
    finished: Path, damaged: Path, tmp_path: Path
) -> None:
    assert not is_whole(damaged / "align/final")
    with pytest.raises(DamagedError, match="hash differs"):
        adopt(damaged, tmp_path / "cell", ["align"])
    assert not (tmp_path / "cell/align").exists()
    adopt(finished, damaged, ["align"])
    assert is_whole(damaged / "align/final") and is_whole(damaged / "instruct/final")


def test_cut_short_anywhere_it_is_made_whole(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = tmp_path / "cell"
    for name in ("link", "rename"):

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, name, die)
            adopt(finished, cell, ["align"])
        assert not (cell / WEIGHTS).exists(), name
    adopt(finished, cell, ["align"])
    assert is_whole(cell / "align/final") and not list(cell.glob(".unfinished-*"))
    assert stages_in_log(cell) == [("align", step) for step in range(1, 5)]


def test_what_a_run_has_done_itself_stays(finished: Path, tmp_path: Path) -> None:
    """It began alone, and its first stage was then trained by another: records of each stage once."""
    cell = shutil.copytree(finished, tmp_path / "cell")
    shutil.rmtree(cell / "align/final")
    with (cell / "log.jsonl").open("a") as file:
        file.write('{"stage": "instru')  # cut short by a kill
    own = inode(cell / "instruct/final/weights.safetensors")
    adopt(finished, cell, ["align"])
    assert inode(cell / "instruct/final/weights.safetensors") == own
    assert stages_in_log(cell) == stages_in_log(finished)
    before = inode(cell / "log.jsonl")
    adopt(finished, cell, ["align"])
    assert inode(cell / "log.jsonl") == before, "a second time there is nothing to do"


def test_going_on_from_a_shared_stage_is_training_alone(finished: Path, make_config: Make) -> None:
    """Bit for bit, the random state of what follows included (LoRA with dropout)."""
    shared = run_training(make_config("name=shared"), "auto", last_stage="align")
    assert stages_in_log(shared) == [("align", step) for step in range(1, 5)]
    assert not (shared / "instruct").exists()
    config = make_config("name=cell")
    cell = Path(config.output_dir) / "cell"
    adopt(shared, cell, ["align"])
    steps: list[tuple[str, int]] = []
    run_training(config, "auto", callbacks=[lambda event: steps.append((event.stage, event.step))])
    assert steps == [("instruct", step) for step in range(1, 8)]
    for name in (WEIGHTS, "instruct/final/weights.safetensors"):
        assert file_hash(cell / name) == file_hash(finished / name)
    assert stages_in_log(cell) == stages_in_log(finished)


def test_what_is_called_before_training_hears_of_the_stages_to_train_alone(make_config: Make) -> None:
    heard: list[list[str]] = []
    run_training(
        make_config("stages.align.schedule.max_steps=1"),
        before_training=[lambda _, config: heard.append(list(config.stages))],
        last_stage="align",
    )
    assert heard == [["align"]]
