"""What training took, from the logs: device-hours and tokens, by stage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.evaluate.report.prism_read import work_key
from prismcap.evaluate.report.read import Record, read_lines, read_object

LOG, MANIFEST, RESULTS = "log.jsonl", "manifest.json", "results.json"


@dataclass(frozen=True)
class Cost:
    """device_hours: time in steps times processes; None of a Prism run, of which nobody knows the devices.
    tokens: all that were trained on, padding aside (of a Prism run: read and written)."""

    device_hours: float | None = 0.0
    tokens: int | None = 0
    supervised_tokens: int | None = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            _sum(self.device_hours, other.device_hours),
            _sum(self.tokens, other.tokens),
            _sum(self.supervised_tokens, other.supervised_tokens),
        )

    def as_dict(self) -> dict[str, float | int | None]:
        hours = None if self.device_hours is None else round(self.device_hours, 8)
        return {
            "device_hours": hours,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
        }


def _sum(one: Any, other: Any) -> Any:
    """What nobody counted leaves the sum uncounted."""
    return None if one is None or other is None else one + other


class Costs:
    """Reads each log once. num_processes: of stages that have no checkpoint to say it."""

    def __init__(self, num_processes: int = 1) -> None:
        self._num_processes = num_processes
        self._logs: dict[Path, list[Record]] = {}

    def stages(self, run: Path) -> list[str]:
        """Stages of which the run's log has a step."""
        return list(dict.fromkeys(record["stage"] for record in self._steps(run)))

    def stage(self, owner: Path, stage: str, run: Path) -> Cost:
        """Of the steps that led to the stage's weights, each once; from the log of `owner`, or, where that
        folder is gone, of `run`, whose log has them too."""
        folder = owner if stage in self.stages(owner) else run
        steps = {record["step"]: record for record in self._steps(folder) if record["stage"] == stage}
        return self._cost(folder, stage, steps.values())

    def spent(self, owner: Path, stage: str) -> Cost:
        """Of all steps that were run, those too that a killed run had to do again."""
        return self._cost(owner, stage, (step for step in self._steps(owner) if step["stage"] == stage))

    def _cost(self, folder: Path, stage: str, steps: Iterable[Record]) -> Cost:
        seconds = tokens = 0.0
        supervised = 0
        for record in steps:
            time_s = float(record.get("time_s") or 0.0)
            seconds += time_s
            tokens += float(record.get("tokens_per_s") or 0.0) * time_s
            supervised += int(record.get("supervised_tokens") or 0)
        return Cost(seconds * self._world_size(folder / stage) / 3600, round(tokens), supervised)

    def _world_size(self, stage_dir: Path) -> int:
        """Processes of the stage, by its newest checkpoint."""
        for path in (stage_dir / "final" / MANIFEST, *sorted(stage_dir.glob(f"step-*/{MANIFEST}"))[::-1]):
            try:
                return int(json.loads(path.read_bytes())["world_size"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return self._num_processes

    def _steps(self, run: Path) -> list[Record]:
        if run not in self._logs:
            path = run / LOG
            records = read_lines(path, "one record per training step") if path.is_file() else []
            self._logs[run] = [
                record
                for record in records
                if "loss" in record
                and isinstance(record.get("step"), int)
                and isinstance(record.get("stage"), str)
            ]
        return self._logs[run]

    def prism(self, run: Path) -> Cost:
        """Tokens read and written by a Prism run, an answer that several of its cells share once."""
        path = run / RESULTS
        if not path.is_file():
            return Cost(None, None, None)
        cells = read_object(path, "written by prismcap prism run", "Run it again.").get("cells") or []
        by_work = {
            work_key(cell, stage): cost for cell in cells for stage, cost in (cell.get("cost") or {}).items()
        }
        counts = [cost.get(key) for cost in by_work.values() for key in ("tokens_in", "tokens_out")]
        known = [int(count) for count in counts if count is not None]
        return Cost(None, sum(known) if len(known) == len(counts) else None, None)
