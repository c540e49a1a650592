"""Runs of run_training, some of which kill themselves with signal 9; one forked process each.

Usage: train_and_die.py CONFIG OUT JOBS [SOURCES]. JOBS is JSON: a list of {"overrides", "resume", "die"},
`die` being "", "after:STAGE:STEP" (after that step, before anything is saved), "writing:STAGE:STEP" (the
checkpoint's files half written), "renaming:STAGE:NAME" (all written, not yet put in place) or
"keeping:STAGE:STEP" (the best weights so far have gone out of the way of those of that step). SOURCES: a
folder of modules with data sources. Stages with `evaluate` have a figure made of their weights. Appends
sample ids and the exact loss of each step to OUT/steps-<run name>.jsonl, and writes the exit codes to
OUT/codes.json.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.model.captioner import Captioner
from prismcap.model.trainable import trainable_state
from prismcap.train import best as best_weights
from prismcap.train import checkpoint as checkpoints
from prismcap.train import run as runs
from prismcap.train.distributed import Ranks
from prismcap.train.evaluations import Measure
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training

WAVES = 60.0  # a few ups and downs in as many steps


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in(module: Any, name: str, where: str) -> None:
    """Let a function of a module do half of its work when a path with `where` is in its arguments."""
    real = getattr(module, name)

    def replaced(*arguments: Any) -> Any:
        if any(where in str(argument) for argument in arguments):
            die()
        return real(*arguments)

    setattr(module, name, replaced)


def by_weights(config: RunConfig, stage: str, ranks: Ranks) -> Measure:  # noqa: ARG001
    """A `measure_of` whose figure goes up and down as the weights move away from zero or towards it."""

    def measure(captioner: Captioner) -> dict[str, dict[str, Any]]:
        squares = sum(float(value.double().square().sum()) for value in trainable_state(captioner).values())
        value = math.sin(WAVES * math.sqrt(squares))
        return {"held_out.all_right": {"rate": value, "low": value, "high": value, "n": 1}}

    return measure


def run(job: dict[str, Any], config_path: str, out: Path) -> None:
    torch.set_num_threads(1)
    config = load_config(config_path, job["overrides"])
    moment, _, place = job["die"].partition(":")
    stage, _, name = place.partition(":")
    if moment == "writing":
        # weights and optimiser are there, random state and manifest are not
        die_in(runs, "save_random_state", f"/{stage}/.unfinished-{checkpoints.step_name(int(name))}")
    elif moment == "renaming":
        die_in(checkpoints, "_check_tensor_files", f"/{stage}/.unfinished-{name}")
    elif moment == "keeping":
        die_in(best_weights, "save_checkpoint", f"stage='{stage}', step={name},")

    def note(event: StepEvent) -> None:
        loss = event.record["loss"]
        line = [event.stage, event.step, list(event.sample_ids), None if loss is None else float(loss).hex()]
        with (out / f"steps-{config.name}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if moment == "after" and (event.stage, event.step) == (stage, int(name)):
            die()

    run_training(config, job["resume"], callbacks=[note], measure_of=by_weights)


def main() -> None:
    config_path, out, jobs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    sys.path += sys.argv[4:]
    codes = []
    for job in jobs:
        child = os.fork()
        if child == 0:
            run(job, config_path, out)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    (out / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
