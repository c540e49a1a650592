"""What became of each unit of an ablation: a small file for each, written whole."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from prismcap.configs.errors import DataError
from prismcap.configs.files import replace_text
from prismcap.configs.schema.prism import PrismConfig
from prismcap.train.ablate.units import Unit
from prismcap.train.checkpoint import FINAL

ABLATION, PLAN = "ablation.yaml", "plan.json"
METRICS = "metrics.json"  # of prismcap evaluate
PRISM_RESULTS = "results.json"  # of prismcap prism run
State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Status:
    """started_at, ended_at: of the last attempt, ISO 8601. returncode: of the command that failed; none also
    where a unit failed since one that it needs did. error: the last words of the command."""

    unit: str
    state: State
    hash: str
    started_at: str | None = None
    ended_at: str | None = None
    attempts: int = 0
    returncode: int | None = None
    error: str | None = None
    command: list[str] | None = None

    @property
    def is_blocked(self) -> bool:
        """Failed without having been tried: a unit that it needs had failed."""
        return self.state == "failed" and self.command is None


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def file_name(unit_id: str) -> str:
    return unit_id.replace("/", "__")


def status_path(folder: Path, unit_id: str) -> Path:
    return folder / "status" / f"{file_name(unit_id)}.json"


def log_path(folder: Path, unit_id: str) -> Path:
    """What the commands of a unit say, all attempts one after another."""
    return folder / "logs" / f"{file_name(unit_id)}.log"


def read_status(folder: Path, unit_id: str) -> Status | None:
    """None where nothing is known yet. Raises DataError for a file that is no status."""
    path = status_path(folder, unit_id)
    try:
        return Status(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: not the status of a unit ({error}): remove the file and start again"
        ) from error


def write_status(folder: Path, status: Status) -> None:
    """Put it in place at once. Raises OSError."""
    path = status_path(folder, status.unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(dataclasses.asdict(status), indent=1, ensure_ascii=False) + "\n")


def is_done(folder: Path, unit: Unit) -> bool:
    """Whether the unit was finished with this very config, and what it made is still there."""
    status = read_status(folder, unit.id)
    if status is None or (status.state, status.hash) != ("done", unit.hash):
        return False
    run_dir = folder / unit.id
    if isinstance(unit.config, PrismConfig):
        return (run_dir / PRISM_RESULTS).is_file()
    trained = all((run_dir / stage / FINAL).is_dir() for stage in unit.all_stages)
    return trained and (not unit.measured or (run_dir / METRICS).is_file())
