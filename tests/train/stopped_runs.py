"""Runs that stop on the way, and copies of whole ones: for tests of resuming."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prismcap.configs.schema.run import RunConfig
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training


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


def copy_of(finished: Path, config: RunConfig) -> Path:
    run_dir = Path(config.output_dir) / config.name
    shutil.copytree(finished, run_dir)
    return run_dir
