"""log.jsonl: one JSON record per step. Always written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prismcap.configs.files import replace_text
from prismcap.configs.schema.run import RunConfig

NAME = "log.jsonl"


def build(config: RunConfig, run_dir: Path) -> JsonlSink:
    return JsonlSink(run_dir / NAME, tuple(config.stages))


class JsonlSink:
    """Appends; a line is flushed as soon as it is written, so that a killed run loses none."""

    def __init__(self, path: Path, stages: tuple[str, ...]) -> None:
        self.path = path
        self.stages = stages
        self.file: IO[str] | None = None

    def start_stage(self, stage: str, total_steps: int, step: int) -> None:  # noqa: ARG002
        self.close()
        if self.path.exists():
            kept = [
                line
                for line in self.path.read_text(encoding="utf-8").splitlines()
                if self._counts(line, stage, step)
            ]
            replace_text(self.path, "".join(f"{line}\n" for line in kept))
        self.file = self.path.open("a", encoding="utf-8")

    def _counts(self, line: str, stage: str, step: int) -> bool:
        """Whether a record lies before the point from which the run goes on."""
        try:
            record = json.loads(line)
            at = (self.stages.index(record["stage"]), int(record["step"]))
        except (ValueError, KeyError, TypeError):
            return False  # a line that was cut short by a kill
        return at <= (self.stages.index(stage), step)

    def write(self, record: Mapping[str, Any]) -> None:
        assert self.file is not None, "start_stage comes first"
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
