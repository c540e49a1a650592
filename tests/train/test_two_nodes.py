"""scripts/slurm.sh with a stand-in for srun: two "nodes" on this machine, with torchrun's own agents."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prismcap.train.checkpoint import verify

pytestmark = pytest.mark.slow  # four processes and more that import torch

ROOT = Path(__file__).parents[2]
FAKES = ROOT / "tests" / "scripts" / "fake_slurm"
# one stage of a few steps; dropout would draw other numbers on each rank
OVERRIDES = (
    "stages.align=null",
    "stages.instruct.train.llm.lora.dropout=0.0",
    "stages.instruct.schedule.max_steps=4",
    "stages.instruct.checkpoint.every_steps=null",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def submit(out: Path, config: Path, *overrides: str) -> subprocess.Popen[str]:
    """The job of two nodes that sbatch would start; both are this machine."""
    job = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "x"}
    fakes = {"FAKE_NODES": "127.0.0.1 127.0.0.1", "FAKE_OUT": str(out)}
    here = {
        "PATH": f"{FAKES}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "MASTER_PORT": str(free_port()),
    }
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [str(ROOT / "scripts" / "slurm.sh"), str(config), "--no-dry-export", *overrides],
        env={**os.environ, **job, **fakes, **here, **threads},
        cwd=out,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def succeeds(job: subprocess.Popen[str]) -> str:
    """What the job prints."""
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output[-6000:]
    return output


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_two_agents_train_bit_for_bit_what_one_trains(world: Path, tmp_path: Path, torchrun: Any) -> None:
    """The same two ranks, under one agent or two. That two ranks are one is shown in test_run.py."""
    config = world / "config.yaml"
    overrides = [f"output_dir={tmp_path}", *OVERRIDES]
    succeeds(submit(tmp_path, config, *overrides, "name=two_nodes"))
    torchrun(2, "-m", "prismcap.scripts.train", str(config), "--no-dry-export", *overrides, "name=one_node")
    assert losses(tmp_path / "two_nodes") == losses(tmp_path / "one_node")
    assert len(set(losses(tmp_path / "two_nodes"))) == 4
    assert not (tmp_path / "requeued.txt").exists()
    two, one = (verify(tmp_path / name / "instruct" / "final") for name in ("two_nodes", "one_node"))
    assert two.world_size == one.world_size == 2, "one rank on each node"
    assert two.files["weights.safetensors"] == one.files["weights.safetensors"]


def test_a_preempted_job_goes_on_where_it_was(world: Path, tmp_path: Path) -> None:
    config = world / "config.yaml"
    # long enough to be stopped on its way, and without a checkpoint but that of the signal
    overrides = [f"output_dir={tmp_path}", *OVERRIDES, "stages.instruct.schedule.max_steps=60"]
    succeeds(submit(tmp_path, config, *overrides, "name=whole"))
    job = submit(tmp_path, config, *overrides, "name=stopped")
    log = tmp_path / "stopped" / "log.jsonl"
    while job.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 5):
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert "queued again" in succeeds(job)
    assert (tmp_path / "requeued.txt").read_text() == "77\n"
    (checkpoint,) = (tmp_path / "stopped" / "instruct").glob("step-*")
    assert 5 < verify(checkpoint).step < 60
    assert "queued again" not in succeeds(submit(tmp_path, config, *overrides, "name=stopped"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
