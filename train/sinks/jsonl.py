"""log.jsonl: one JSON record per step. Always written. evaluations.jsonl: one per evaluation on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prismcap.configs.files import replace_text
from prismcap.configs.schema.run import RunConfig

NAME = "log.jsonl"
EVALUATIONS = "evaluations.jsonl"


def build(config: RunConfig, run_dir: Path) -> JsonlSink:
    return JsonlSink(run_dir / NAME, tuple(config.stages))


class JsonlSink:
    """Appends; a line is flushed as soon as it is written, so that a killed run loses none.

    path: of the step records; those of evaluations lie beside it.
    """

    def __init__(self, path: Path, stages: tuple[str, ...]) -> None:
        self.steps = _Records(path, stages)
        self.evaluations = _Records(path.with_name(EVALUATIONS), stages)

    def start_stage(self, stage: str, total_steps: int, step: int) -> None:  # noqa: ARG002
        for records in (self.steps, self.evaluations):
            records.drop_after(stage, step)

    def write(self, record: Mapping[str, Any]) -> None:
        self.steps.append(record)

    def write_evaluation(self, record: Mapping[str, Any]) -> None:
        self.evaluations.append(record)

    def close(self) -> None:
        self.steps.close()
        self.evaluations.close()


def evaluations_up_to(run_dir: Path, stages: tuple[str, ...], stage: str, step: int) -> list[dict[str, Any]]:
    """The records of one stage's evaluations up to a step, those that stand when it goes on from there."""
    kept = _Records(run_dir / EVALUATIONS, stages).up_to(stage, step)
    return [record for record in map(json.loads, kept) if record["stage"] == stage]


class _Records:
    """A file of records, each with its stage and step. It is made when the first one is written."""

    def __init__(self, path: Path, stages: tuple[str, ...]) -> None:
        self.path = path
        self.stages = stages
        self.file: IO[str] | None = None

    def drop_after(self, stage: str, step: int) -> None:
        """Without what lies past the point from which the run goes on."""
        self.close()
        if self.path.exists():
            replace_text(self.path, "".join(f"{line}\n" for line in self.up_to(stage, step)))

    def up_to(self, stage: str, step: int) -> list[str]:
        """The lines of records that lie before this point or at it."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if self._counts(line, stage, step)]

    def _counts(self, line: str, stage: str, step: int) -> bool:
        try:
            record = json.loads(line)
            at = (self.stages.index(record["stage"]), int(record["step"]))
        except (ValueError, KeyError, TypeError):
            return False  # a line that was cut short by a kill
        return at <= (self.stages.index(stage), step)

    def append(self, record: Mapping[str, Any]) -> None:
        if self.file is None:
            self.file = self.path.open("a", encoding="utf-8")
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
