"""The command, and the short form before a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.scripts.cli import cli
from prismcap.train.distributed import Ranks
from prismcap.train.doctor.checkup import check_before_stage, check_before_training
from prismcap.train.doctor.findings import DoctorError
from prismcap.train.run import run_training

Make = Callable[..., RunConfig]


def prismcap(command: str, world: Path, folder: Path, *overrides: str) -> Result:
    arguments = [command, str(world / "config.yaml"), f"output_dir={folder}", *overrides]
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_the_doctor_finds_nothing_wrong(world: Path, tmp_path: Path) -> None:
    done = prismcap("doctor", world, tmp_path)
    assert done.exit_code == 0, done.output
    assert "0 errors" in done.output and "⟦" in done.output
    for words in (
        "align: llm is frozen",
        "instruct: llm trains",
        "gradient norm of connector",
        "the largest micro-batch (1 x 96 tokens, 4 pictures) ran",
        "a checkpoint of",
        "the export was written",
        "disk:",
        "memory needed",
    ):
        assert words in done.output, words
    # and leaves nothing that a training would stumble over
    assert [path for path in (tmp_path / "tiny").rglob("*") if path.is_file()] == []
    run_training(load_config(world / "config.yaml", [f"output_dir={tmp_path}"]))


def test_the_doctor_stops_with_what_is_wrong(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prismcap.train.doctor.memory.free_bytes", lambda _: 1000)
    done = prismcap("doctor", world, tmp_path)
    assert done.exit_code == 1, done.output
    assert "error" in done.output and "gradient_checkpointing" in done.output
    # what would take the memory was not run
    assert "the largest micro-batch" not in done.output


def losses(run_dir: Path) -> list[str]:
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [float(record["loss"]).hex() for record in records]


def test_looking_changes_no_bit_of_the_training(make_config: Make) -> None:
    said: list[str] = []

    def look(captioner: Any, config: RunConfig) -> None:
        check_before_training(captioner, config, Ranks(), said.append)

    def look_again(config: RunConfig, name: str, engine: Any, captioner: Any) -> None:
        check_before_stage(config, name, engine, captioner, Ranks(), said.append)

    # dropout and LoRA in the second stage
    looked = run_training(make_config("name=looked"), before_training=[look], before_stage=[look_again])
    plain = run_training(make_config("name=plain"))
    assert losses(looked) == losses(plain)
    assert sum("the largest micro-batch" in line for line in said) == 3  # at first, and before each stage
    assert sum("saved, verified and loaded again" in line for line in said) == 2
    for stage in ("align", "instruct"):
        paths = [run / stage / "final" / "weights.safetensors" for run in (looked, plain)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_training_does_not_start_when_something_is_wrong(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prismcap.train.doctor.memory.free_bytes", lambda _: 1000)
    arguments = ["train", str(world / "config.yaml"), f"output_dir={tmp_path}", "--no-dry-export"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0 and "beside the weights" in str(done.exception)
    assert not (tmp_path / "tiny" / "align").exists()
    done = CliRunner().invoke(cli, [*arguments, "--resume", "auto", "--no-doctor"], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_a_stage_does_not_start_when_its_checkpoints_do_not_come_back(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismcap.train.engines.torch import TorchEngine

    monkeypatch.setattr(TorchEngine, "load", lambda self, folder: None)  # noqa: ARG005
    config = make_config("name=lost")

    def look(config: RunConfig, name: str, engine: Any, captioner: Any) -> None:
        check_before_stage(config, name, engine, captioner, Ranks(), lambda _: None)

    with pytest.raises(DoctorError, match="is not what was saved"):
        run_training(config, before_stage=[look])
    assert not list((Path(config.output_dir) / "lost").rglob("weights.safetensors"))


@pytest.fixture(scope="module")
def two_copies(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of rows for each rank: that of rank 1 has another text in one row."""
    folder = tmp_path_factory.mktemp("copies")
    rows = json.loads((world / "rows.json").read_text())
    for rank in range(2):
        (folder / f"rows-{rank}.json").write_text(json.dumps(rows))
        rows[3]["conversations"][1]["value"] = "another answer"
    return folder


@pytest.mark.slow
def test_two_ranks_and_two_copies_of_the_data(
    world: Path, two_copies: Path, tmp_path: Path, torchrun: Any
) -> None:
    paths = [str(world / "config.yaml"), str(two_copies), str(tmp_path)]
    done = torchrun(2, "doctor_on_ranks.py", *paths)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["same"] == [0, 0], done.stdout
    assert results["other_data"] == [1, 1]
    assert "differs between ranks" in results["training"]
