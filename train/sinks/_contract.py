"""Where step records go. A sink is one file of this folder with `build(config, run_dir) -> Sink`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Sink(Protocol):
    """Lives on rank 0 only."""

    def start_stage(self, stage: str, total_steps: int, step: int) -> None:
        """Stage `stage` goes on after `step` steps. What an earlier, killed run recorded past it is void."""

    def write(self, record: Mapping[str, Any]) -> None:
        """One step: `stage`, `step` (from 1), `loss`, `lr/<group>`, …; see train/fit.py."""

    def write_evaluation(self, record: Mapping[str, Any]) -> None:
        """One evaluation of the stage, after a step: `stage`, `step`, `figures` by <split>.<figure>, each
        {rate or mean, low, high, n}, `time_s`, `share` (of the stage's time so far, all evaluations together)
        and whether it is the `best` so far; see train/evaluations.py."""

    def close(self) -> None:
        """Flush. Called once, after an error as well."""
