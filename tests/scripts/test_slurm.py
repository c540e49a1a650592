"""scripts/slurm.sh with stand-ins for SLURM's commands and for torchrun: what it starts, when it requeues."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fake_slurm"
OVERRIDES = ("name=a b", "stages.*.engine.name=deepspeed", "x='$HOME'")

Submit = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Runs the script as sbatch would, with FAKE_… settings as keyword arguments."""

    def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
        job = {"SLURM_JOB_ID": "71234", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
        fakes = {"FAKE_NODES": "node7 node8", "FAKE_OUT": str(tmp_path), "FAKE_SECONDS": "30"}
        path = f"{FAKES}:{os.environ['PATH']}"
        return subprocess.Popen(
            [str(ROOT / "scripts" / "slurm.sh"), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "PYTHON": str(FAKES / "agent"), **job, **fakes, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait_for(*paths: Path) -> None:
    until = time.monotonic() + 20
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, [path.name for path in paths if not path.exists()]
        time.sleep(0.02)


def on_both(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}-0", folder / f"{name}-1"]


def requeued(folder: Path) -> list[str]:
    path = folder / "requeued.txt"
    return path.read_text().split() if path.exists() else []


def torchrun_arguments(folder: Path, node: int) -> Any:
    """As torchrun's own parser reads them."""
    from torch.distributed.run import get_args_parser

    interpreter_option, module, *arguments = json.loads((folder / f"agent-{node}.json").read_text())
    assert (interpreter_option, module) == ("-m", "torch.distributed.run")
    return get_args_parser().parse_args(arguments)


def test_each_node_gets_an_agent_of_one_rendezvous(submit: Submit, tmp_path: Path) -> None:
    settings = {"FAKE_SECONDS": "0", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    job = submit("demo/scenes", *OVERRIDES, SLURM_RESTART_COUNT="2", **settings)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 0, err
    first, second = (torchrun_arguments(tmp_path, node) for node in (0, 1))
    for arguments in (first, second):
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.max_restarts) == ("2", "4", 0)
        assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("c10d", "node7:21234")
        assert arguments.rdzv_id == "71234.2", "a requeued job must not meet the agents of its last life"
        assert (arguments.module, arguments.training_script) == (True, "prismcap.scripts.train")
        assert arguments.training_script_args == ["--resume", "auto", "demo/scenes", *OVERRIDES]
    assert (first.rdzv_conf, second.rdzv_conf) == ("is_host=true", "is_host=false")
    assert (first.local_addr, second.local_addr) == ("node7", "node8")
    options = json.loads((tmp_path / "srun.json").read_text())[:4]
    assert options == ["--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpus-per-task=32"]
    assert requeued(tmp_path) == [], "a run that has finished is not queued again"


def test_a_preempted_run_is_saved_on_every_node_and_queued_again(submit: Submit, tmp_path: Path) -> None:
    job = submit("demo/scenes")
    wait_for(*on_both(tmp_path, "ready"))
    job.send_signal(signal.SIGUSR1)
    out, err = job.communicate(timeout=20)
    assert job.returncode == 0, err
    assert all(path.exists() for path in on_both(tmp_path, "saved"))
    assert requeued(tmp_path) == ["71234"] and "queued again" in out


def test_a_run_stopped_before_it_could_save_is_queued_again(submit: Submit, tmp_path: Path) -> None:
    """While a rank starts, the signal just ends it: it goes on from its newest checkpoint."""
    job = submit("demo/scenes", FAKE_STARTING="1")
    wait_for(*on_both(tmp_path, "ready"))
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=20)
    assert job.returncode != 0
    assert requeued(tmp_path) == ["71234"]


def test_a_run_that_failed_is_not_queued_again(submit: Submit, tmp_path: Path) -> None:
    job = submit("demo/scenes", FAKE_SECONDS="0", FAKE_EXIT="3")
    _, err = job.communicate(timeout=20)
    assert job.returncode == 3
    assert requeued(tmp_path) == [] and "not queued again" in err


def test_a_cancelled_run_is_saved_and_not_queued_again(submit: Submit, tmp_path: Path) -> None:
    """scancel sends SIGTERM to the tasks, and nothing to the batch script."""
    job = submit("demo/scenes")
    wait_for(*on_both(tmp_path, "ready"), tmp_path / "tasks.json")
    for task in json.loads((tmp_path / "tasks.json").read_text()):
        os.killpg(task, signal.SIGTERM)
    _, err = job.communicate(timeout=20)
    assert job.returncode == 0, err
    assert all(path.exists() for path in on_both(tmp_path, "saved"))
    assert requeued(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ([], {}, "Usage: sbatch"),
        (["demo/scenes"], {"SLURM_JOB_ID": ""}, "Usage: sbatch"),
        (["demo/scenes"], {"PYTHON": ""}, "submit from the repository"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(
    submit: Submit, tmp_path: Path, arguments: list[str], settings: dict[str, str], words: str
) -> None:
    job = submit(*arguments, **settings)
    out, err = job.communicate(timeout=20)
    assert (job.returncode, out) == (2, "")
    assert words in err
    assert not (tmp_path / "srun.json").exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["slurm.sh", "gpu_acceptance.sh"])
def test_shellcheck_finds_nothing(script: str) -> None:
    done = subprocess.run(
        ["shellcheck", "-x", f"scripts/{script}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
