"""Jobs for SLURM, with stand-ins for its commands: what they run, after what, and how they are pre-empted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ablation_axes import SECOND, axis

from prismcap.configs.errors import ConfigError
from prismcap.train.ablate.expand import ablation_folder, expand
from prismcap.train.ablate.folder import write_plan
from prismcap.train.ablate.slurm import submit, write_jobs
from prismcap.train.ablate.units import plan_units

FAKES = Path(__file__).parents[2] / "scripts" / "fake_slurm"
# stands for Python: notes its arguments, and with FAKE_SECONDS lives on until SIGUSR1
PYTHON = """#!/usr/bin/env bash
echo "$PWD $*" >>"$FAKE_OUT/ran.txt"
trap 'touch "$FAKE_OUT/saved"; exit 138' USR1
for _ in $(seq "${FAKE_SECONDS:-0}"); do sleep 1 & wait $!; done
exit "${FAKE_EXIT:-0}"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the stand-ins note what they do."""
    out = tmp_path / "a cluster"
    out.mkdir()
    (out / "python").write_text(PYTHON)
    (out / "python").chmod(0o755)
    monkeypatch.setenv("FAKE_OUT", str(out))
    monkeypatch.setenv("PYTHON", str(out / "python"))
    monkeypatch.setenv("PATH", f"{FAKES}:{os.environ['PATH']}")
    return out


def prepared(make_ablation: Any, sbatch: tuple[str, ...] = (), seeds: tuple[int, ...] = (0, 1)) -> Any:
    launch = {"evaluate": False, "name": "slurm", "parallel": 3, "sbatch": sbatch}
    config = make_ablation({"second": axis(**SECOND)}, launch=launch, seeds=seeds)
    plan = plan_units(config, expand(config))
    write_plan(config, plan)
    return config, plan, ablation_folder(config)


def test_an_array_for_each_wave_after_the_last_and_a_job_that_collects(
    make_ablation: Any, slurm: Path
) -> None:
    config, plan, folder = prepared(make_ablation, ("--gres=gpu:8", "--time=4:00:00", "--account=us"))
    said = submit(write_jobs(folder, config, list(plan.units.values())))
    assert said.splitlines() == ["wave-0: job 100", "wave-1: job 101", "collect: job 102"]
    first, second, last = [json.loads(line) for line in (slurm / "jobs.jsonl").read_text().splitlines()]
    assert [job["codes"] for job in (first, second, last)] == [[0, 0], [0, 0, 0, 0], [0]]
    assert "--array=0-1%3" in first["options"] and "--array=0-3%3" in second["options"]
    assert not any("dependency" in option for option in first["options"])
    assert "--dependency=afterany:100" in second["options"]
    assert "--dependency=afterany:101" in last["options"]
    for job in (first, second):
        assert job["options"][-3:] == ["--gres=gpu:8", "--time=4:00:00", "--account=us"]
    assert "--account=us" in last["options"] and "--gres=gpu:8" not in last["options"]
    start = f"{Path.cwd()} -m prismcap.scripts.cli ablate {folder / 'ablation.yaml'}"
    assert (slurm / "ran.txt").read_text().splitlines() == [
        *(f"{start} --unit {unit}" for unit in plan.units),
        f"{start} --report-only",
    ]


def test_a_failed_task_stops_no_other(
    make_ablation: Any, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan, folder = prepared(make_ablation)
    monkeypatch.setenv("FAKE_EXIT", "1")
    submit(write_jobs(folder, config, list(plan.units.values())))
    jobs = [json.loads(line) for line in (slurm / "jobs.jsonl").read_text().splitlines()]
    assert [job["codes"] for job in jobs] == [[1, 1], [1, 1, 1, 1], [1]]


def test_what_is_left_alone_is_submitted(make_ablation: Any, slurm: Path) -> None:
    config, plan, folder = prepared(make_ablation)
    write_jobs(folder, config, list(plan.units.values()))
    submit(write_jobs(folder, config, [unit for unit in plan.units.values() if unit.wave == 1][2:]))
    jobs = [json.loads(line) for line in (slurm / "jobs.jsonl").read_text().splitlines()]
    assert [job["script"] for job in jobs] == ["wave-1.sh", "collect.sh"]
    assert "--array=0-1%3" in jobs[0]["options"]
    assert not (folder / "slurm" / "wave-0.sh").exists()


@pytest.mark.parametrize("sbatch", ["missing", "refuses"])
def test_without_sbatch_the_scripts_are_named(
    make_ablation: Any, slurm: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str
) -> None:
    config, plan, folder = prepared(make_ablation, ("--refused",) if sbatch == "refuses" else ())
    if sbatch == "missing":
        monkeypatch.setenv("PATH", os.environ["PATH"].removeprefix(f"{FAKES}:"))
    script = write_jobs(folder, config, list(plan.units.values()))
    with pytest.raises(ConfigError, match=r"jobs were not all taken: (.|\n)*submit.sh on a machine"):
        submit(script)
    assert not (slurm / "ran.txt").exists()


def test_a_preempted_task_saves_and_is_queued_again(make_ablation: Any, slurm: Path) -> None:
    config, plan, folder = prepared(make_ablation)
    write_jobs(folder, config, list(plan.units.values()))
    job = {"SLURM_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "1", "FAKE_SECONDS": "30"}
    task = subprocess.Popen(["bash", str(folder / "slurm/wave-0.sh")], env={**os.environ, **job})
    until = time.monotonic() + 20
    while not (slurm / "ran.txt").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.3)  # the stand-in sets its trap after it was noted
    task.send_signal(signal.SIGUSR1)
    assert task.wait(timeout=20) == 138
    assert (slurm / "saved").exists()
    assert (slurm / "requeued.txt").read_text().split() == ["71"]
    assert list(plan.units)[1] in (slurm / "ran.txt").read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
def test_the_scripts_are_clean(make_ablation: Any) -> None:
    config, plan, folder = prepared(make_ablation, ("--gres=gpu:8",))
    write_jobs(folder, config, list(plan.units.values()))
    scripts = sorted((folder / "slurm").glob("*.sh"))
    subprocess.run(["shellcheck", "--severity=warning", *scripts], check=True)
