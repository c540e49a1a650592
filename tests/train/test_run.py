"""Whole runs: folders, resuming, refusals. Each error names what is wrong and what to do."""

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
from prismcap.train.runfolder import open_run
from prismcap.train.skipping import SkipBudget

Make = Callable[..., RunConfig]


class Stop(Exception):
    pass


def stop_after(stage: str, step: int) -> Callable[[StepEvent], None]:
    def callback(event: StepEvent) -> None:
        if (event.stage, event.step) == (stage, step):
            raise Stop

    return callback


def train_until(config: RunConfig, stage: str, step: int) -> Path:
    with pytest.raises(Stop):
        run_training(config, callbacks=[stop_after(stage, step)])
    return Path(config.output_dir) / config.name


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, not to be changed."""
    config = load_config(world / "config.yaml", [f"output_dir={tmp_path_factory.mktemp('finished')}"])
    return run_training(config)


def copy_of(finished: Path, config: RunConfig) -> Path:
    run_dir = Path(config.output_dir) / config.name
    shutil.copytree(finished, run_dir)
    return run_dir


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


def test_a_finished_run_is_not_trained_again(finished: Path, make_config: Make) -> None:
    config = make_config()
    run_dir = copy_of(finished, config)
    called: list[str] = []
    run_training(
        config,
        resume="auto",
        before_training=[lambda *_: called.append("before")],
        callbacks=[lambda event: called.append(event.stage)],
    )
    assert called == []
    assert (run_dir / "log.jsonl").read_text() == (finished / "log.jsonl").read_text()


def test_hooks_run_once_before_the_first_step(make_config: Make) -> None:
    seen: list[Any] = []
    train_hook = lambda captioner, config: seen.append((type(captioner), config.name))  # noqa: E731
    config = make_config()
    with pytest.raises(Stop):
        run_training(config, before_training=[train_hook], callbacks=[stop_after("instruct", 1)])
    assert seen == [(Captioner, "tiny")]


def test_never_refuses_a_folder_that_holds_something(finished: Path, make_config: Make) -> None:
    config = make_config()
    copy_of(finished, config)
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume auto"):
        run_training(config)


def test_a_page_of_data_inspect_is_not_a_run(make_config: Make, world: Path) -> None:
    config = make_config()
    run_dir = Path(config.output_dir) / config.name
    command = ["data", "inspect", str(world / "config.yaml"), f"output_dir={config.output_dir}", "--num", "2"]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0 and (run_dir / "inspect-align.html").is_file()
    with open_run(config, "never", Ranks()):
        pass
    with pytest.raises(ConfigError, match="already holds a run"), open_run(config, "never", Ranks()):
        pass  # now it holds a config


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


@pytest.mark.parametrize("where", ["below_a_file", "system"])
def test_an_unwritable_folder_is_refused_before_anything(
    make_config: Make, tmp_path: Path, where: str
) -> None:
    # root may write anywhere but below a file, and in no folder of /proc
    file = tmp_path / "file"
    file.touch()
    config = make_config(f"output_dir={file if where == 'below_a_file' else '/proc/prismcap'}")
    called: list[Any] = []
    with pytest.raises(ConfigError, match=r"output_dir: .*cannot be written"):
        run_training(config, before_training=[lambda *_: called.append(1)])
    assert called == []


def test_one_folder_one_process(make_config: Make, launch: Any, world: Path) -> None:
    config = make_config("stages.align.schedule.max_steps=1", "stages.instruct.schedule.max_steps=1")

    def second_process(event: StepEvent) -> None:
        if event.stage == "instruct":
            return
        code = f"""
from prismcap.configs.load import load_config
from prismcap.train.runfolder import open_run
from prismcap.train.distributed import Ranks
config = load_config({str(world / "config.yaml")!r}, ["output_dir={config.output_dir}"])
try:
    with open_run(config, "auto", Ranks()):
        print("opened")
except ValueError as error:
    print(error)
"""
        texts.append(launch("-c", code).stdout)

    texts: list[str] = []
    run_training(config, callbacks=[second_process])
    assert "another process trains into this folder (process " in texts[0]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=4", "seed: 3 then, 4 now"),
        ("model.connector.name=linear", "model.connector.name: 'mlp' then, 'linear' now"),
        ("stages.align.schedule.max_steps=9", "stages.align.schedule.max_steps: 4 then, 9 now"),
        ("stages.instruct.engine.name=deepspeed", "stages.instruct.engine.name"),
        ("stages.instruct.data.mix.0.limit=5", "stages.instruct.data.mix.0.limit"),
    ],
)
def test_another_config_is_refused_naming_the_keys(
    finished: Path, make_config: Make, override: str, key: str
) -> None:
    copy_of(finished, make_config())
    with pytest.raises(ConfigError) as caught:
        run_training(make_config(override), resume="auto")
    assert key in str(caught.value)
    assert "another config" in str(caught.value)


def test_another_order_of_stages_is_refused(finished: Path, make_config: Make) -> None:
    config = make_config()
    copy_of(finished, config)
    alone = config.model_copy(update={"stages": {"instruct": config.stages["instruct"]}})
    with pytest.raises(ConfigError, match="stages: align, instruct then, instruct now"):
        run_training(alone, resume="auto")


def test_data_that_changed_in_place_is_refused(world: Path, make_config: Make, tmp_path: Path) -> None:
    rows = json.loads((world / "rows.json").read_text())
    copy = tmp_path / "rows.json"
    copy.write_text(json.dumps(rows))
    mix = f"[{{name: llava_json, path: {copy}, image_root: {world}}}]"
    config = make_config(f"stages.align.data.mix={mix}")
    train_until(config, "align", 3)
    copy.write_text(json.dumps(rows[:-1]))
    with pytest.raises(ConfigError, match=r"step-000002: stages\.align\.data had 23 .* now it has 22"):
        run_training(config, resume="auto")


def test_text_that_is_cut_off_is_counted_and_said_once(
    make_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = train_until(make_config("stages.align.data.max_tokens=16"), "align", 4)
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert sum(record["cut_tokens"] > 0 for record in records) > 1
    assert caplog.text.count("tokens were cut off") == 1


def test_what_changes_no_weight_may_change_and_stages_to_come_too(finished: Path, make_config: Make) -> None:
    run_dir = copy_of(finished, make_config())
    shutil.rmtree(run_dir / "instruct")
    config = make_config(
        "logging.every_steps=5",
        "stages.align.data.num_workers=1",
        "stages.align.checkpoint.keep=1",
        "stages.instruct.schedule.max_steps=2",
    )
    run_training(config, resume="auto")
    assert verify(run_dir / "instruct" / "final").step == 2
    assert load_config(run_dir / "config.yaml") == config


@pytest.mark.parametrize("damaged", ["instruct/step-000006", "instruct/final"])
def test_a_damaged_checkpoint_costs_only_the_way_from_the_one_before(
    finished: Path, make_config: Make, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    run_dir = copy_of(finished, config)
    shutil.rmtree(run_dir / "instruct" / "final")
    if damaged.endswith("final"):
        shutil.copytree(finished / "instruct" / "final", run_dir / "instruct" / "final")
    path = run_dir / damaged / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    steps: list[int] = []
    run_training(config, resume="auto", callbacks=[lambda event: steps.append(event.step)])
    assert steps == ([7] if damaged.endswith("final") else [5, 6, 7])
    assert str(path.parent) in caplog.text
    for name in ("instruct/step-000006/optimizer.safetensors", "instruct/final/weights.safetensors"):
        assert file_hash(run_dir / name) == file_hash(finished / name)


def test_branching_off_from_a_checkpoint(finished: Path, make_config: Make) -> None:
    checkpoint = finished / "instruct" / "step-000004"
    config = make_config("name=branch")
    steps: list[int] = []
    run_dir = run_training(config, resume=str(checkpoint), callbacks=[lambda event: steps.append(event.step)])
    assert steps == [5, 6, 7]
    name = "instruct/final/weights.safetensors"
    assert file_hash(run_dir / name) == file_hash(finished / name)
    assert len((run_dir / "log.jsonl").read_text().splitlines()) == 11
    with pytest.raises(ConfigError, match=r"final is newer|step-000006 is newer"):
        run_training(
            load_config(finished / "config.yaml", [f"output_dir={finished.parent}"]), resume=str(checkpoint)
        )
    with pytest.raises(ConfigError, match="no checkpoint there"):
        run_training(make_config("name=other"), resume=str(finished / "nothing"))


def test_a_copy_of_another_run_that_is_cut_short_is_no_run(
    finished: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = finished / "instruct" / "step-000004"
    config = make_config("name=branch")
    copytree = shutil.copytree

    def second_fails(source: Path, target: Path) -> None:
        if source == checkpoint:
            raise OSError(28, "No space left on device")
        copytree(source, target)

    monkeypatch.setattr(shutil, "copytree", second_fails)
    with pytest.raises(OSError, match="No space left"), open_run(config, str(checkpoint), Ranks()):
        pass
    monkeypatch.undo()
    assert not (Path(config.output_dir) / "branch" / "align").exists()
    with open_run(config, str(checkpoint), Ranks()) as run_dir:
        assert verify(run_dir / "align" / "final") and verify(run_dir / "instruct" / "step-000004")
        assert not list(run_dir.glob(".unfinished-*"))


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
