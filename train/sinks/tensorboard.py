"""TensorBoard event files under <run>/tensorboard/<stage>."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismcap.configs.errors import MissingExtraError
from prismcap.configs.schema.run import RunConfig
from prismcap.train.figures import figure_values


def build(config: RunConfig, run_dir: Path) -> TensorboardSink:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "logging.sinks: [tensorboard]") from error
    return TensorboardSink(run_dir / "tensorboard", config.logging.every_steps)


class TensorboardSink:
    """One writer per stage: steps count from 1 in each."""

    def __init__(self, folder: Path, every_steps: int) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.writer: Any = None

    def start_stage(self, stage: str, total_steps: int, step: int) -> None:  # noqa: ARG002
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        # purge_step hides what a killed run recorded past the point from which this one goes on
        self.writer = SummaryWriter(str(self.folder / stage), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        if record["step"] % self.every_steps:
            return
        for key, value in record.items():
            if isinstance(value, int | float) and key != "step":
                self.writer.add_scalar(key, value, record["step"])

    def write_evaluation(self, record: Mapping[str, Any]) -> None:
        for name, value in figure_values(record["figures"]).items():
            self.writer.add_scalar(f"eval/{name}", value, record["step"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
