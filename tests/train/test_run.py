"""Whole runs: what they leave, and what becomes of faults on the way."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from stopped_runs import Stop, stop_after, train_until

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.data.schema import DataError
from prismcap.model.captioner import Captioner, Output
from prismcap.model.restore import load_trained
from prismcap.model.weights import load_weights
from prismcap.scripts.cli import cli
from prismcap.train.checkpoint import Manifest, SaveError, file_hash, save_checkpoint, verify
from prismcap.train.distributed import Ranks
from prismcap.train.engines._contract import NonFiniteError
from prismcap.train.fit import StepEvent
from prismcap.train.run import _StageRun, run_training
from prismcap.train.skipping import SkipBudget

Make = Callable[..., RunConfig]


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    for stage, last in (("align", "step-000002"), ("instruct", "step-000006")):
        assert verify(finished / stage / "final").step == {"align": 4, "instruct": 7}[stage]
        assert verify(finished / stage / last).stage == stage
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [(record["stage"], record["step"]) for record in records] == [
        *(("align", step) for step in range(1, 5)),
        *(("instruct", step) for step in range(1, 8)),
    ]
    numbers = ("loss", "grad_norm", "samples_per_s", "tokens_per_s", "supervised_tokens_per_s", "time_s")
    assert all(math.isfinite(record[key]) and record[key] > 0 for record in records for key in numbers)
    shares = ("padding_share", "data_wait_share", "accuracy/token")
    assert all(0 <= record[key] <= 1 for record in records for key in shares)
    assert {"lr/connector", "lr/llm", "peak_memory_mb", "rejected"} <= set(records[-1])
    assert "lr/llm" not in records[0] and records[0]["cut_tokens"] == 0
    captioner, config = load_trained(finished)
    assert list(config.stages) == ["align", "instruct"]
    # what stage 2 did not train is as stage 1 left it; what it did train is what its final says
    trained = load_weights(finished / "instruct" / "final" / "weights.safetensors")
    state = dict(captioner.named_parameters())
    assert all(torch.equal(state[name], value) for name, value in trained.items() if "lora" not in name)


def test_hooks_run_once_before_the_first_step(make_config: Make) -> None:
    seen: list[Any] = []
    train_hook = lambda captioner, config: seen.append((type(captioner), config.name))  # noqa: E731
    config = make_config()
    with pytest.raises(Stop):
        run_training(config, before_training=[train_hook], callbacks=[stop_after("instruct", 1)])
    assert seen == [(Captioner, "tiny")]


def test_a_full_disk_ends_the_command_with_what_to_do(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "log.jsonl")

    monkeypatch.setattr("prismcap.train.run.run_training", full)
    done = CliRunner().invoke(cli, ["train", str(world / "config.yaml"), f"output_dir={tmp_path}"])
    assert done.exit_code == 1
    assert "log.jsonl cannot be read or written: No space left on device" in done.output
    assert "--resume auto" in done.output


def test_text_that_is_cut_off_is_counted_and_said_once(
    make_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = train_until(make_config("stages.align.data.max_tokens=16"), "align", 4)
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert sum(record["cut_tokens"] > 0 for record in records) > 1
    assert caplog.text.count("tokens were cut off") == 1


def test_no_space_for_a_checkpoint_keeps_the_ones_before(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismcap.train.engines import torch as engine

    real = engine.save_weights

    def full_disk(path: Path, state: Any) -> None:
        if "step-000004" in str(path):
            raise OSError(28, "No space left on device", str(path))
        real(path, state)

    monkeypatch.setattr(engine, "save_weights", full_disk)
    config = make_config()
    with pytest.raises(SaveError, match=r"step-000004: no space left .*needs about .* MB"):
        run_training(config)
    run_dir = Path(config.output_dir) / "tiny"
    assert verify(run_dir / "instruct" / "step-000002").step == 2
    monkeypatch.undo()
    steps: list[int] = []
    run_training(config, resume="auto", callbacks=[lambda event: steps.append(event.step)])
    assert steps == [3, 4, 5, 6, 7]


def test_a_loss_that_is_not_finite_names_stage_step_and_samples(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Captioner.forward

    def broken(self: Captioner, batch: Any) -> Output:
        output = forward(self, batch)
        if "row7" in batch.sample_ids:
            output.loss_sum = output.loss_sum * math.nan
        return output

    monkeypatch.setattr(Captioner, "forward", broken)
    with pytest.raises(NonFiniteError, match=r"stage align, step \d: the loss is not finite.*row7") as caught:
        run_training(make_config("stages.align.optimizer.max_skipped_steps=0"))
    assert "row7" in caught.value.sample_ids


def test_a_data_worker_that_dies_costs_the_run_nothing(
    finished: Path, make_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def kill_worker(event: StepEvent) -> None:
        if (event.stage, event.step) == ("instruct", 3):
            (worker,) = multiprocessing.active_children()
            worker.kill()
            worker.join()

    run_dir = run_training(make_config("stages.instruct.data.num_workers=1"), callbacks=[kill_worker])
    assert sum("killed by SIGKILL" in record.getMessage() for record in caplog.records) == 1
    name = "instruct/final/weights.safetensors"
    assert file_hash(run_dir / name) == file_hash(finished / name)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_data_workers_changes_not_one_bit(
    finished: Path, make_config: Make, num_workers: int
) -> None:
    stages = ("align", "instruct")
    run_dir = run_training(make_config(*(f"stages.{one}.data.num_workers={num_workers}" for one in stages)))
    for folder in ("align/final", "instruct/step-000006", "instruct/final"):
        for path in (finished / folder).iterdir():
            if path.name != "manifest.json":
                assert file_hash(run_dir / folder / path.name) == file_hash(path), (folder, path.name)


def test_too_many_rejected_samples_end_the_run(make_config: Make) -> None:
    # the prompt alone takes more than 8 tokens
    config = make_config("stages.align.template.name=chatml", "stages.align.data.max_tokens=8")
    with pytest.raises(DataError, match=r"samples rejected \(.*max_rejected_share"):
        run_training(config)


def test_an_engine_of_shards_refuses_another_number_of_ranks(make_config: Make, tmp_path: Path) -> None:
    class Shards:
        fixed_world_size = True
        step = 0

        def load(self, _: Path) -> None:
            raise AssertionError("must not be reached")

    config = make_config("stages.instruct.engine.name=deepspeed")
    manifest = Manifest("instruct", 2, 2, "deepspeed", {}, {})
    save_checkpoint(tmp_path, "step-000002", manifest, lambda _: None, Ranks())
    run = _StageRun(config, "instruct", tmp_path, Ranks())
    tally: Any = None
    with pytest.raises(ConfigError, match=r"written by 2 processes, this run has 1.*Start 2 processes"):
        run._go_on(Shards(), tally, SkipBudget(0))  # type: ignore[arg-type]


def test_the_command_trains_on_two_ranks_what_one_trains(world: Path, tmp_path: Path, torchrun: Any) -> None:
    """With ZeRO-2 in the first stage and torch in the second, which one rank can then go on with."""
    pytest.importorskip("deepspeed")
    no_dropout = "stages.instruct.train.llm.lora.dropout=0.0"
    overrides = [f"output_dir={tmp_path}", no_dropout, "stages.instruct.schedule.max_steps=5"]
    sharded = "stages.align.engine.name=deepspeed"
    torchrun(2, "-m", "prismcap.scripts.train", str(world / "config.yaml"), *overrides, sharded)
    one = load_config(world / "config.yaml", [*overrides, "name=one"])
    run_training(one)

    def records(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    for two_ranks, one_rank in zip(records("tiny"), records("one"), strict=True):
        assert two_ranks["loss"] == pytest.approx(one_rank["loss"], rel=1e-4)
        assert two_ranks["supervised_tokens"] == one_rank["supervised_tokens"]
    # torch's state is whole in every rank, so another number of ranks may go on with it
    shutil.rmtree(tmp_path / "tiny" / "instruct" / "final")
    steps: list[int] = []
    again = load_config(world / "config.yaml", [*overrides, sharded])
    run_training(again, resume="auto", callbacks=[lambda event: steps.append(event.step)])
    assert steps == [5]
    assert verify(tmp_path / "tiny" / "instruct" / "step-000004").world_size == 2
    assert records("tiny")[-1]["loss"] == pytest.approx(records("one")[-1]["loss"], rel=1e-4)
