"""A run's folder: refused, gone on with, branched off from. Each error names what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from stopped_runs import copy_of, train_until

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.scripts.cli import cli
from prismcap.train.checkpoint import file_hash, verify
from prismcap.train.distributed import Ranks
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training
from prismcap.train.runfolder import open_run

Make = Callable[..., RunConfig]


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
