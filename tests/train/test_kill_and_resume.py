"""Killed with signal 9 at any moment and resumed, a run ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prismcap.train.checkpoint import file_hash, verify

# checkpoints are written every 2 steps; align has 4 steps, instruct 7 (LoRA with dropout)
DEATHS = [
    "after:align:3",
    "renaming:align:final",
    "after:instruct:1",
    "after:instruct:3",
    "writing:instruct:4",
    "renaming:instruct:step-000006",
    "",
]
# what stage instruct trains, and with which engine; align trains the connector alone
FULL = "stages.instruct.train={connector: {lr: 0.005}, llm: {lr: 0.01}, vision_encoder: {lr: 0.01}}"
ZERO2 = [f"stages.{stage}.engine={{name: deepspeed, zero_stage: 2}}" for stage in ("align", "instruct")]
MODES = {
    "lora": [],
    "full": [FULL],
    "deepspeed": ZERO2,
    "deepspeed_full": [*ZERO2, FULL, "stages.instruct.precision=bf16"],
}
TIMES = {
    "samples_per_s",
    "tokens_per_s",
    "supervised_tokens_per_s",
    "data_wait_share",
    "peak_memory_mb",
    "time_s",
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(mode, marks=pytest.mark.slow if mode != "lora" else ()) for mode in MODES],
)
def runs(
    request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory, launch: Any
) -> Path:
    out = tmp_path_factory.mktemp("kill")
    settings = [f"output_dir={out}", *MODES[request.param]]
    jobs = [{"overrides": [*settings, "name=whole"], "resume": "never", "die": ""}]
    # loader workers in some of the runs: the data must not depend on them
    for i, die in enumerate(DEATHS):
        workers = [f"stages.{stage}.data.num_workers={i % 2}" for stage in ("align", "instruct")]
        jobs.append({"overrides": [*settings, "name=killed", *workers], "resume": "auto", "die": die})
    script = Path(__file__).parent / "workers" / "train_and_die.py"
    launch(str(script), str(world / "config.yaml"), str(out), json.dumps(jobs))
    return out


def steps(out: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (out / f"steps-{name}.jsonl").read_text().splitlines()]


def test_every_kill_was_one(runs: Path) -> None:
    codes = json.loads((runs / "codes.json").read_text())
    assert codes == [0, *(-9 if die else 0 for die in DEATHS)]


def test_losses_and_sample_ids_are_those_of_the_uninterrupted_run(runs: Path) -> None:
    whole, killed = steps(runs, "whole"), steps(runs, "killed")
    assert [line[:2] for line in whole] == [
        *(["align", step] for step in range(1, 5)),
        *(["instruct", step] for step in range(1, 8)),
    ]
    assert len(killed) > len(whole), "some steps were made again"
    by_step = {(stage, step): (ids, loss) for stage, step, ids, loss in whole}
    for stage, step, ids, loss in killed:
        assert (ids, loss) == by_step[stage, step], (stage, step)
    assert {(stage, step) for stage, step, _, _ in killed} == set(by_step)


def test_resuming_went_on_from_the_newest_checkpoint(runs: Path) -> None:
    starts = []
    before = None
    for stage, step, _, _ in steps(runs, "killed"):
        if before is None or (stage, step) != (before[0], before[1] + 1):
            starts.append((stage, step))
        before = (stage, step)
    # the kill while instruct's step 4 was written costs steps 3 and 4, that in step 6's rename 5 and 6
    assert starts == [
        ("align", 1),
        ("align", 3),
        ("align", 3),
        ("instruct", 1),
        ("instruct", 1),
        ("instruct", 3),
        ("instruct", 3),
        ("instruct", 5),
    ]


@pytest.mark.parametrize(
    "checkpoint", ["align/final", "align/step-000002", "instruct/step-000006", "instruct/final"]
)
def test_weights_optimiser_and_random_state_are_equal(runs: Path, checkpoint: str) -> None:
    whole, killed = runs / "whole" / checkpoint, runs / "killed" / checkpoint
    verify(killed)
    paths = [path for path in whole.rglob("*.*") if path.name != "manifest.json"]
    sharded = (whole / "zero").exists()
    assert paths and (sharded or (whole / "weights.safetensors").exists())
    assert sharded or (whole / "optimizer.safetensors").exists() == ("step" in checkpoint)
    for path in paths:
        other = killed / path.relative_to(whole)
        if path.suffix == ".pt":
            assert pickled_tensors(path) == pickled_tensors(other), path.name
        else:
            assert file_hash(path) == file_hash(other), path.name


def pickled_tensors(path: Path) -> list[bytes]:
    """Every tensor of one of DeepSpeed's shards; the pickle around them need not be the same twice."""
    found: list[bytes] = []

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                walk(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif hasattr(value, "__dict__"):
            walk(vars(value))

    walk(torch.load(path, weights_only=False))
    assert found
    return found


def test_the_log_is_that_of_the_uninterrupted_run_except_for_times(runs: Path) -> None:
    def records(name: str) -> list[dict[str, Any]]:
        lines = (runs / name / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]

    assert records("killed") == records("whole")


def test_nothing_half_written_is_left(runs: Path) -> None:
    left = [path.name for path in (runs / "killed").rglob(".*")]
    assert left == [".lock"]
