"""A real ablation, killed with signal 9 at any moment and started again: nothing is trained twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ablation_axes import SECOND, axis

from prismcap.configs.load import load_config
from prismcap.train.ablate.expand import ablation_folder, expand
from prismcap.train.ablate.units import plan_units
from prismcap.train.checkpoint import file_hash
from prismcap.train.run import run_training

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]
LOW, HIGH = "cells/second.low-seed.0", "cells/second.high-seed.0"
# a checkpoint after every step, so that a kill costs at most the step that it comes in
LONG = [
    "stages.align.schedule.max_steps=30",
    "stages.instruct.schedule.max_steps=30",
    "stages.*.checkpoint.every_steps=1",
]
SPLIT = {"source": {"name": "drawn_scenes_source.drawn", "num_scenes": 60}, "num_items": 10}
MEASURED = f"evaluation={json.dumps({'splits': {'first': SPLIT, 'second': SPLIT}, 'max_new_tokens': 4})}"
# the results are others' work
RUN = """
import sys
from types import ModuleType
parts = {"ablation": None, "ablation.collect": "collect", "report.ablation_page": "draw_ablation"}
for name, function in parts.items():
    module = ModuleType(f"prismcap.evaluate.{name}")
    if function:
        setattr(module, function, lambda folder: folder)
    sys.modules[module.__name__] = module
from prismcap.scripts.cli import main
main()
"""


class Ablation:
    """Started in a process of its own, as often as it takes."""

    def __init__(self, make_ablation: Any, tmp_path: Path, overrides: list[str], **keys: Any) -> None:
        config = make_ablation(
            {"second": axis(**SECOND)}, set=overrides, figures=["first.all_right"], **({"launch": {}} | keys)
        )
        self.plan, self.folder = plan_units(config, expand(config)), ablation_folder(config)
        self.command = [sys.executable, "-c", RUN, "ablate", str(tmp_path / "abl.yaml")]
        path = f"{TESTS / 'evaluate'}:{os.environ.get('PYTHONPATH', '')}"
        self.environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.started: list[subprocess.Popen[bytes]] = []

    @property
    def shared(self) -> str:
        return next(iter(self.plan.units))

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self.command, env=self.environment)
        self.started.append(process)
        return process

    def finish(self, code: int = 0) -> None:
        assert self.start().wait(timeout=300) == code

    def log(self, unit: str) -> str:
        path = self.folder / "logs" / f"{unit.replace('/', '__')}.log"
        return path.read_text() if path.exists() else ""

    def steps(self, unit: str) -> list[tuple[str, int]]:
        path = self.folder / unit / "log.jsonl"
        if not path.exists():
            return []
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        return [(record["stage"], record["step"]) for record in map(json.loads, lines)]


@pytest.fixture
def start(
    make_ablation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Ablation]]:
    monkeypatch.syspath_prepend(str(TESTS / "evaluate"))  # where the source of what is measured lies
    made: list[Ablation] = []

    def make(*overrides: str, **keys: Any) -> Ablation:
        made.append(Ablation(make_ablation, tmp_path, [*LONG, MEASURED, *overrides], **keys))
        return made[-1]

    yield make
    for ablation in made:
        for process in ablation.started:
            if process.poll() is None:
                kill_all(process)


def descendants(pid: int) -> list[int]:
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    rows = [tuple(map(int, line.split())) for line in table.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, of in rows if of == parent]
    return found


def kill_all(process: subprocess.Popen[bytes]) -> None:
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)


def starts(ablation: Ablation, unit: str, what: str) -> int:
    return len(re.findall(rf"^\$ .*prismcap.scripts.\S+ {what} ", ablation.log(unit), re.MULTILINE))


def test_killed_and_started_again_it_repeats_nothing(start: Any) -> None:
    """In a shared stage, in a cell, and between two splits of its evaluation."""
    ablation = start()
    metrics = ablation.folder / LOW / "metrics.json"
    moments: list[Callable[[], bool]] = [
        lambda: ("align", 8) in ablation.steps(ablation.shared),
        lambda: ("instruct", 8) in ablation.steps(LOW),
        lambda: metrics.exists() and '"first"' in metrics.read_text(),
    ]
    for moment in moments:
        process = ablation.start()
        wait_until(moment, process)
        kill_all(process)
    measured = json.loads(metrics.read_text())["first"]
    ablation.finish()
    assert json.loads(metrics.read_text())["first"] == measured
    assert set(json.loads(metrics.read_text())) == {"about", "first", "second"}
    expected = {ablation.shared: 2, LOW: 2, HIGH: 1}
    for unit, stage in ((ablation.shared, "align"), (LOW, "instruct")):
        # gone on after the last step, or the one before, where the checkpoint was half written
        [resumed] = re.findall(rf"stage {stage}: goes on after step (\d+)", ablation.log(unit))
        assert int(resumed) >= 7
    assert {name: starts(ablation, name, "train") for name in expected} == expected
    align, instruct = ([(name, step) for step in range(1, 31)] for name in ("align", "instruct"))
    assert ablation.steps(ablation.shared) == align
    assert ablation.steps(LOW) == ablation.steps(HIGH) == [*align, *instruct]
    logs = {name: ablation.log(name) for name in expected}
    ablation.finish()
    assert {name: ablation.log(name) for name in expected} == logs, "done is done"


def test_sharing_changes_no_weight(start: Any, world: Path, tmp_path: Path) -> None:
    ablation = start()
    ablation.finish()
    for unit, overrides in ((LOW, []), (HIGH, SECOND["high"])):
        config = load_config(
            world / "config.yaml",
            [*LONG, *overrides, "seed=0", "name=alone", f"output_dir={tmp_path / unit}"],
        )
        alone = run_training(config)
        for name in ("align", "instruct"):
            weights = f"{name}/final/weights.safetensors"
            assert file_hash(alone / weights) == file_hash(ablation.folder / unit / weights)
    assert starts(ablation, LOW, "evaluate") == 1


def test_asked_to_stop_it_saves_and_goes_on(start: Any) -> None:
    ablation = start("stages.*.checkpoint.every_steps=1000")
    process = ablation.start()
    wait_until(lambda: ("instruct", 5) in ablation.steps(LOW), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    done = ablation.steps(LOW)
    status = json.loads((ablation.folder / "status" / f"{LOW.replace('/', '__')}.json").read_text())
    assert status["state"] == "waiting"
    ablation.finish()
    [resumed] = re.findall(r"stage instruct: goes on after step (\d+)", ablation.log(LOW))
    assert int(resumed) == done[-1][1], "no step was lost"


def test_cells_of_two_processes_at_once(start: Any) -> None:
    """Under torchrun, two cells in parallel: each agent finds a port of its own."""
    ablation = start(launch={"num_processes": 2, "parallel": 2})
    ablation.finish()
    for unit in (LOW, HIGH):
        manifest = json.loads((ablation.folder / unit / "instruct/final/manifest.json").read_text())
        assert manifest["world_size"] == 2
    assert ablation.steps(LOW)[-1] == ("instruct", 30)


def test_ranks_are_asked_to_stop_and_save(start: Any) -> None:
    ablation = start("stages.*.checkpoint.every_steps=1000", launch={"num_processes": 2})
    process = ablation.start()
    wait_until(lambda: ("align", 5) in ablation.steps(ablation.shared), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert list((ablation.folder / ablation.shared / "align").glob("step-*"))
    ablation.finish()
    [resumed] = re.findall(r"stage align: goes on after step (\d+)", ablation.log(ablation.shared))
    assert int(resumed) >= 5
