"""`prismcap bench train` and `prismcap plan` on a GPU: speeds, and planned memory is what is used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Measured = Callable[[str], None]


def samples_per_s(steps: list[dict[str, Any]]) -> float:
    return sum(step["num_samples"] for step in steps) / sum(step["time_s"] for step in steps)


@pytest.mark.gpu
def test_bench_prints_its_table(tmp_path: Path, measured: Measured) -> None:
    """`prismcap bench train`: our step against LlavaForConditionalGeneration's, SmolLM2's size, mix665k"""
    out = tmp_path / "bench.json"
    command = [
        sys.executable,
        "-m",
        "prismcap.scripts.cli",
        "bench",
        "train",
        "--no-compile",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    (result,) = json.loads(out.read_text())["results"]
    speeds = {name: samples_per_s(steps) for name, steps in result["steps"].items()}
    measured(", ".join(f"{name} {speed:.1f} samples/s" for name, speed in speeds.items()))
    assert "samples/s" in done.stdout and set(speeds) >= {"ours", "llava"}
    assert torch.cuda.get_device_name(0) in json.dumps(result)


@pytest.mark.gpu
def test_planned_memory_is_what_is_used(measured: Measured) -> None:
    """`prismcap plan`: memory of both stages within 10% of the measured peak, SmolLM2's size, 2,048 tokens"""
    from prismcap.model.build import build_captioner
    from prismcap.model.trainable import prepare_stage
    from prismcap.train.bench.cases import TrainCase, model_config, stage_config
    from prismcap.train.distributed import Ranks
    from prismcap.train.engines import torch as engine_module
    from prismcap.train.plan.memory import StageMemory, configured_sharding
    from prismcap.train.plan.worst_case import worst_batch

    device, shares = torch.device("cuda"), []
    model = model_config("smollm2", visual_tokens=576)
    for name in ("align", "instruct"):
        stage = stage_config(TrainCase(mix="mix665k", stage=name), compiled=False)
        planned = StageMemory(model, stage).of(configured_sharding(stage, 1)).total
        captioner = build_captioner(model, seed=0)
        prepare_stage(captioner, stage.train)
        ranks = Ranks(device=device)
        engine = engine_module.build(engine_module.Options(), captioner.to(device), stage, 10, ranks)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):  # the optimiser's moments are there from the second on
            engine.train_step([worst_batch(captioner, stage)])
        shares.append(planned / torch.cuda.max_memory_allocated())
        engine.close()
        del captioner, engine
        torch.cuda.empty_cache()
    measured(f"planned / measured: align {shares[0]:.2f}, instruct {shares[1]:.2f}")
    assert shares == pytest.approx([1.0, 1.0], abs=0.1)
