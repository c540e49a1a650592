"""Which units run, when, and what becomes of the others: with a stand-in for training."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ablation_axes import SECOND, axis
from held_locks import held_elsewhere

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.ablation import AblationConfig
from prismcap.train.ablate import unit_run
from prismcap.train.ablate.children import Children
from prismcap.train.ablate.expand import ablation_folder, expand
from prismcap.train.ablate.folder import alone, write_plan
from prismcap.train.ablate.launch import Outcome, environment_of, run_units
from prismcap.train.ablate.status import Status, log_path, read_status, status_path, write_status
from prismcap.train.ablate.unit_run import UnitRunner
from prismcap.train.ablate.units import Plan, plan_units
from prismcap.train.locks import locked_with_children

FAKE = Path(__file__).parent / "fake_train.py"
LOW, HIGH = "cells/second.low-seed.0", "cells/second.high-seed.0"


class Ablation:
    """One ablation, started any number of times."""

    def __init__(self, config: AblationConfig) -> None:
        self.plan: Plan = plan_units(config, expand(config))
        self.config, self.folder = config, ablation_folder(config)
        self.said: list[str] = []
        write_plan(config, self.plan)

    @property
    def shared(self) -> str:
        [unit] = [name for name in self.plan.units if name.startswith("shared/")]
        return unit

    def run(self, **options: Any) -> Outcome:
        runner = UnitRunner(self.folder, self.plan, self.config.launch, Children(), self.said.append)
        return run_units(runner, **options)

    def order(self, **what: str) -> None:
        names = {"shared": self.shared, "low": LOW, "high": HIGH} if what else {}
        (self.folder / "fake.json").write_text(json.dumps({names[key]: to for key, to in what.items()}))

    def starts(self) -> list[str]:
        path = self.folder / "starts.txt"
        return path.read_text().split() if path.exists() else []

    def states(self) -> dict[str, str]:
        found = {unit: read_status(self.folder, unit) for unit in self.plan.units}
        return {unit: status.state for unit, status in found.items() if status}


@pytest.fixture
def start(make_ablation: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ablation]:
    def command(config: Path, last_stage: str, num_processes: int) -> list[str]:  # noqa: ARG001
        return [sys.executable, "-I", "-S", str(FAKE), str(config.parent), "--until", last_stage]

    def copy(source: Path, target: Path, stages: tuple[str, ...]) -> None:
        for stage in stages:
            shutil.copytree(source / stage / "final", target / stage / "final", dirs_exist_ok=True)

    monkeypatch.setattr(unit_run, "train_command", command)
    monkeypatch.setattr(unit_run, "adopt", copy)
    monkeypatch.setattr(unit_run, "is_whole", Path.is_dir)

    def make(axes: dict[str, Any] | None = None, parallel: int = 1, **keys: Any) -> Ablation:
        launch = {"evaluate": False, "parallel": parallel}
        return Ablation(make_ablation(axes or {"second": axis(**SECOND)}, launch=launch, **keys))

    return make


def test_what_others_need_runs_first_and_nothing_twice(start: Any) -> None:
    ablation = start()
    assert ablation.run() == Outcome({})
    assert ablation.starts() == [ablation.shared, LOW, HIGH]
    status = read_status(ablation.folder, LOW)
    assert status is not None and (status.state, status.attempts, status.returncode) == ("done", 1, None)
    assert status.started_at and status.ended_at and status.command and status.command[0] == sys.executable
    assert "training cells/second.low" in log_path(ablation.folder, LOW).read_text()
    ablation.run()
    assert len(ablation.starts()) == 3
    # what it had made is gone: done it is no more
    shutil.rmtree(ablation.folder / LOW)
    ablation.run()
    assert ablation.starts()[3:] == [LOW]


def test_two_at_once(start: Any) -> None:
    ablation = start({"model": axis(a={}, b=["model.connector.depth=3"])}, parallel=2)
    cells = [cell.unit for cell in ablation.plan.cells]
    (ablation.folder / "fake.json").write_text(json.dumps(dict.fromkeys(cells, "meet")))
    assert ablation.run() == Outcome({})
    assert set(ablation.states().values()) == {"done"}


def test_a_failed_cell_fails_alone_and_is_tried_again_when_asked(start: Any) -> None:
    ablation = start()
    ablation.order(low="fail")
    outcome = ablation.run()
    [(unit, status)] = outcome.failed.items()
    assert (unit, status.returncode, status.attempts) == (LOW, 3, 1)
    assert status.error is not None and status.error.endswith("Error: no such data")
    assert ablation.states() == {ablation.shared: "done", LOW: "failed", HIGH: "done"}
    assert any(
        str(log_path(ablation.folder, LOW)) in line and "no such data" in line for line in ablation.said
    )
    ablation.order()
    assert list(ablation.run().failed) == [LOW], "not tried again unless asked"
    assert ablation.starts().count(LOW) == 1
    assert ablation.run(retry_failed=True) == Outcome({})
    assert ablation.starts().count(LOW) == 2 and len(ablation.starts()) == 4
    status = read_status(ablation.folder, LOW)
    assert status is not None and status.attempts == 2


def test_what_needs_a_failed_unit_says_so_and_others_go_on(start: Any) -> None:
    axes = {"second": axis(**SECOND), "first": axis(short={}, long=["stages.align.schedule.max_steps=5"])}
    ablation = start(axes)
    alone_ = "cells/second.low-first.long-seed.0"
    (ablation.folder / "fake.json").write_text(json.dumps({ablation.shared: "fail"}))
    outcome = ablation.run()
    needing = [cell.unit for cell in ablation.plan.cells if cell.unit != alone_]
    assert sorted(outcome.failed) == sorted([ablation.shared, *needing])
    assert ablation.states()[alone_] == "done"
    for unit in needing:
        status = outcome.failed[unit]
        assert status.error is not None and f"needs {ablation.shared}, which failed" in status.error
        assert (status.returncode, status.attempts) == (None, 0)
    assert sorted(ablation.starts()) == sorted([ablation.shared, alone_])
    ablation.order()
    assert ablation.run(retry_failed=True) == Outcome({})
    assert len(ablation.starts()) == 5


def test_what_a_killed_ablation_left_running_goes_on(start: Any) -> None:
    ablation = start()
    unit = ablation.plan.units[ablation.shared]
    write_status(ablation.folder, Status(unit.id, "running", unit.hash, attempts=1, command=["x"]))
    assert ablation.run() == Outcome({})
    status = read_status(ablation.folder, unit.id)
    assert status is not None and (status.state, status.attempts) == ("done", 2)


def test_a_command_that_outlived_its_ablation_is_waited_for(start: Any) -> None:
    """Its descriptor of the unit's lock is open as long as it lives."""
    ablation = start()
    path = status_path(ablation.folder, ablation.shared).with_suffix(".lock")
    path.parent.mkdir(parents=True)
    log = ablation.folder / "orphan.txt"
    code = "import time; time.sleep(1.5)"
    with locked_with_children(path) as descriptor:
        thread = threading.Thread(
            target=Children().call,
            args=([sys.executable, "-I", "-S", "-c", code], log, dict(os.environ), [descriptor]),
        )
        thread.start()
        while not log.exists() or not log.stat().st_size:
            time.sleep(0.01)
        time.sleep(0.2)
    begun_s = time.monotonic()
    assert ablation.run() == Outcome({})
    assert time.monotonic() - begun_s > 0.7
    assert any("at work on it; waiting" in line for line in ablation.said)
    thread.join()


def test_a_stop_reaches_the_commands_and_loses_nothing(start: Any) -> None:
    ablation = start()
    ablation.order(low="hang")

    def stop() -> None:
        while LOW not in ablation.starts():
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    outcome = ablation.run()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert outcome == Outcome({}, signal.SIGTERM)
    assert (ablation.folder / LOW / "saved").exists(), "training was asked, not killed"
    assert ablation.states() == {ablation.shared: "done", LOW: "waiting", HIGH: "waiting"}
    ablation.order()
    assert ablation.run() == Outcome({})
    assert ablation.starts() == [ablation.shared, LOW, LOW, HIGH]


def test_a_run_that_ends_early_is_not_taken_for_a_trained_one(start: Any) -> None:
    ablation = start()
    ablation.order(shared="stop")
    outcome = ablation.run(wanted=[ablation.shared])
    status = outcome.failed[ablation.shared]
    assert status.returncode == 0 and "stopped by a signal from outside" in str(status.error)


def test_one_unit_alone_needs_what_it_goes_on_from(start: Any) -> None:
    ablation = start()
    assert list(ablation.run(wanted=[LOW]).failed) == [LOW]
    assert ablation.run(wanted=[ablation.shared]) == Outcome({})
    assert ablation.run(wanted=[LOW]) == Outcome({}), "it had failed for want of another alone"
    assert ablation.starts() == [ablation.shared, LOW]


def test_another_training_of_a_unit_that_has_work_is_refused_before_anything(start: Any) -> None:
    start().run()
    other = {"low": {}, "high": ["stages.instruct.train.connector.lr=0.04"]}
    changed = start({"second": axis(**other)})
    with pytest.raises(ConfigError) as caught:
        changed.run(retry_failed=True)
    text = str(caught.value)
    assert HIGH in text and LOW not in text
    assert "stages.instruct.train.connector.lr: 0.02 then, 0.04 now" in text
    assert "another name (name=…), or remove these folders" in text
    shutil.rmtree(changed.folder / HIGH)
    assert changed.run() == Outcome({})
    assert changed.starts().count(HIGH) == 2 and len(changed.starts()) == 4


@pytest.fixture
def with_items(start: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Ablation]:
    """An ablation that measures so many items; measuring fails where figures are there already."""

    def measure(run_dir: Path) -> list[str]:
        code = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); assert not p.exists(); p.touch()"
        return [sys.executable, "-I", "-S", "-c", code, str(run_dir / "metrics.json")]

    monkeypatch.setattr(unit_run, "evaluate_command", measure)

    def make(number: int) -> Ablation:
        split = {"source": {"name": "llava_json", "path": "a.json"}, "num_items": number}
        ablation = start(set={"evaluation": {"splits": {"held_out": split}}})
        launch = ablation.config.launch.model_copy(update={"evaluate": True})
        return Ablation(ablation.config.model_copy(update={"launch": launch}))

    return make


def test_figures_of_another_evaluation_are_forgotten(with_items: Any) -> None:
    """--missing would take them for today's."""
    with_items(5).run()
    again = with_items(6)
    assert again.run() == Outcome({})
    assert len(again.starts()) == 3, "training is as it was"
    config = (again.folder / LOW / "config.yaml").read_text()
    assert "num_items: 6" in config


def test_they_are_forgotten_after_a_time_without_what_the_unit_needs(with_items: Any) -> None:
    """Blocked, it was not tried with the config of then: its figures are still those of before."""
    with_items(5).run()
    again = with_items(6)
    for unit in (again.shared, LOW, HIGH):
        shutil.rmtree(again.folder / unit / "align")
    again.order(shared="fail")
    assert set(again.run().failed) == {again.shared, LOW, HIGH}
    again.order()
    assert again.run(retry_failed=True) == Outcome({})


def test_a_cell_that_was_trained_alone_hands_its_stage_to_those_that_come(start: Any) -> None:
    few = start({"second": axis(**SECOND)}, seeds=[0])
    alone_ = start({"second": axis(low={}, other=["stages.align.schedule.max_steps=5"])})
    alone_.run()
    assert alone_.starts() == [LOW, "cells/second.other-seed.0"]
    assert few.run() == Outcome({})
    # the shared unit found low's stage
    assert few.starts()[2:] == [HIGH]


def test_two_ablations_in_one_folder(start: Any) -> None:
    ablation = start()
    with held_elsewhere(ablation.folder / ".lock") as (process, _):
        words = f"another prismcap ablate runs here .process {process}"
        with pytest.raises(ConfigError, match=words), alone(ablation.folder):
            pass
    with alone(ablation.folder):
        pass


def test_a_run_s_folder_is_no_ablation_s(start: Any) -> None:
    ablation = start()
    (ablation.folder / "config.yaml").touch()
    with pytest.raises(ConfigError, match="is the folder of a run"):
        write_plan(ablation.config, ablation.plan)


def test_a_file_that_is_no_status_is_named(start: Any) -> None:
    ablation = start()
    path = status_path(ablation.folder, LOW)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(DataError, match=str(path)):
        ablation.run()


def test_our_own_mistakes_stay_in_their_unit(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = start()
    adopt = unit_run.adopt

    def wrong(source: Path, target: Path, stages: Any) -> None:
        if target.name in LOW:
            raise ZeroDivisionError
        adopt(source, target, stages)

    monkeypatch.setattr(unit_run, "adopt", wrong)
    outcome = ablation.run()
    assert list(outcome.failed) == [LOW] and "ZeroDivisionError" in str(outcome.failed[LOW].error)
    assert ablation.states()[HIGH] == "done"


def test_places_share_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)

    def devices(slot: int, parallel: int, ranks: int, gpus: int) -> str | None:
        return environment_of(slot, parallel, ranks, lambda: gpus).get("CUDA_VISIBLE_DEVICES")

    assert [devices(slot, 4, 2, 8) for slot in range(4)] == ["0,1", "2,3", "4,5", "6,7"]
    assert [devices(slot, 3, 1, 2) for slot in range(3)] == ["0", "1", "0"]
    assert devices(0, 2, 4, 2) is None and devices(0, 2, 1, 0) is None and devices(0, 1, 1, 8) is None
    assert environment_of(0, 4, 2, lambda: 0)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert devices(1, 2, 1, 8) == "GPU-b"


def test_statuses_hold_what_is_promised(start: Any) -> None:
    ablation = start()
    ablation.run()
    values = json.loads(status_path(ablation.folder, LOW).read_text())
    assert set(values) == {field.name for field in dataclasses.fields(Status)}
    assert values["unit"] == LOW and values["hash"] == ablation.plan.units[LOW].hash
    assert status_path(ablation.folder, LOW).name == "cells__second.low-seed.0.json"
    assert (ablation.folder / "plan.json").is_file() and (ablation.folder / "ablation.yaml").is_file()
