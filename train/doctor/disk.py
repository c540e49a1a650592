"""Is there room for every file that the run will write."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.train.doctor.findings import Finding, error, ok
from prismcap.train.files import megabytes

# a weight and Adam's two moments in fp32; bf16 engines save the bf16 weights beside fp32 masters
STATE_BYTES = {False: 12, True: 14}
FINAL_BYTES = 4


@dataclass(frozen=True)
class StageSize:
    """trained: weights that train. steps: of the stage. bf16_weights: the engine keeps masters of its own."""

    trained: int
    steps: int
    bf16_weights: bool = False


def run_bytes(config: RunConfig, sizes: Mapping[str, StageSize], total_weights: int) -> int:
    """The most that the run's folder holds at a time: what every stage leaves, and the largest file that is
    there besides for a while (a checkpoint before an older one is pruned, the dry export)."""
    kept, besides = 0, total_weights * FINAL_BYTES
    for name, size in sizes.items():
        checkpoint = size.trained * STATE_BYTES[size.bf16_weights]
        stage = config.stages[name]
        kept += size.trained * FINAL_BYTES * (1 + _num_best(stage))
        kept += checkpoint * _num_kept(stage, size.steps)
        besides = max(besides, checkpoint)
    return kept + besides


def _num_kept(stage: StageConfig, steps: int) -> int:
    """Step checkpoints that the stage leaves; the last step is saved as final."""
    every = stage.checkpoint.every_steps
    return 0 if every is None else min(stage.checkpoint.keep, (steps - 1) // every)


def _num_best(stage: StageConfig) -> int:
    """The best weights of the stage, and those before them."""
    return 2 if stage.evaluate is not None and stage.evaluate.best is not None else 0


def check_disk(folder: Path, needed_bytes: int, used_bytes: int = 0) -> Finding:
    """`used_bytes`: what of it is there already. The folder exists."""
    free = shutil.disk_usage(folder).free
    needed = max(0, needed_bytes - used_bytes)
    text = (
        f"disk: checkpoints and export take up to {megabytes(needed)} in {folder}, {megabytes(free)} are free"
    )
    if needed > free:
        return error(text, "Make room, set output_dir=… to another disk, or lower checkpoint.keep.")
    return ok(text)


def folder_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
