"""What the person at the terminal sees: a bar, or a line every few seconds where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prismcap.configs.schema.run import RunConfig
from prismcap.train.figures import figure_values

LINE_EVERY_S = 10.0


def build(config: RunConfig, run_dir: Path) -> ProgressSink:  # noqa: ARG001
    return ProgressSink(sys.stderr)


class ProgressSink:
    """The bar redraws one line; a log file gets whole lines instead, the first and last step among them."""

    def __init__(self, stream: IO[str], line_every_s: float = LINE_EVERY_S) -> None:
        self.stream = stream
        self.line_every_s = line_every_s
        self.total_steps = 0
        self.bar: Any = None
        self.last_line_s = -line_every_s

    def start_stage(self, stage: str, total_steps: int, step: int) -> None:
        from tqdm import tqdm

        self.close()
        self.total_steps = total_steps
        self.last_line_s = -self.line_every_s
        if self.stream.isatty():
            self.bar = tqdm(total=total_steps, initial=step, desc=stage, unit="step", file=self.stream)

    def write(self, record: Mapping[str, Any]) -> None:
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix_str(
                f"{_loss(record)}, {record['samples_per_s']:.1f} samples/s", refresh=False
            )
            return
        now = time.monotonic()
        if now - self.last_line_s >= self.line_every_s or record["step"] == self.total_steps:
            self.last_line_s = now
            print(self._line(record), file=self.stream, flush=True)

    def write_evaluation(self, record: Mapping[str, Any]) -> None:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in figure_values(record["figures"]).items())
        line = (
            f"{record['stage']} step {record['step']}/{self.total_steps}  {figures}  "
            f"in {record['time_s']:.1f} s, evaluations are {record['share']:.1%} of the stage's time"
            f"{'  the best so far' if record['best'] else ''}"
        )
        if self.bar is not None:
            self.bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)

    def _line(self, record: Mapping[str, Any]) -> str:
        left_s = (self.total_steps - record["step"]) * record["time_s"]
        return (
            f"{record['stage']} step {record['step']}/{self.total_steps}  {_loss(record)}  "
            f"{record['samples_per_s']:.1f} samples/s  "
            f"waiting for data {record['data_wait_share']:.0%}  about {left_s / 60:.1f} min left"
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _loss(record: Mapping[str, Any]) -> str:
    return "skipped" if record["skipped"] else f"loss {record['loss']:.4f}"
