"""One unit of an ablation from where it stands to its end: take over, train, measure."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.files import replace_text
from prismcap.configs.load import to_yaml
from prismcap.configs.schema.ablation import LaunchConfig
from prismcap.configs.schema.prism import PrismConfig
from prismcap.configs.schema.run import RunConfig
from prismcap.train.ablate.adopt import adopt, is_whole
from prismcap.train.ablate.children import TORCHRUN, Children, StoppingError
from prismcap.train.ablate.status import (
    METRICS,
    Status,
    is_done,
    log_path,
    now,
    read_status,
    status_path,
    write_status,
)
from prismcap.train.ablate.units import Plan, Unit
from prismcap.train.checkpoint import FINAL
from prismcap.train.locks import TakenError, locked_with_children
from prismcap.train.runfolder import CONFIG
from prismcap.train.settle import as_before

Say = Callable[[str], None]

# what prismcap evaluate writes, and --missing would take for figures of today's config
MEASURED = (METRICS, "captions.jsonl", "outcomes.jsonl")
LOOK_EVERY_S = 0.5
LAST_WORDS = 1500  # characters of a log that say why a command failed


@dataclass
class UnitRunner:
    """Runs units of one ablation, in any number of threads and processes: each unit is in one hand alone."""

    folder: Path
    plan: Plan
    launch: LaunchConfig
    children: Children
    say: Say

    def run(self, unit_id: str, environment: Mapping[str, str]) -> Status:
        """To the end, unless it was finished before or a unit that it needs is not. Returns its status.

        environment: of its commands. Raises StoppingError when the ablation was asked to stop meanwhile; the
        unit is then waiting, and goes on where it was.
        """
        unit = self.plan.units[unit_id]
        with self._alone(unit) as descriptor:
            before = read_status(self.folder, unit_id) or Status(unit_id, "waiting", unit.hash)
            if is_done(self.folder, unit):
                return before
            undone = [other for other in unit.after if not is_done(self.folder, self.plan.units[other])]
            if undone:
                return self._put(blocked(unit, before, undone))
            self._forget_old_figures(unit, before)
            running = self._put(
                Status(unit_id, "running", unit.hash, started_at=now(), attempts=before.attempts + 1)
            )
            try:
                ended = self._work(unit, running, environment, descriptor)
            except StoppingError:
                self._put(dataclasses.replace(running, state="waiting", ended_at=now()))
                raise
            except (ConfigError, DataError, OSError) as error:
                ended = dataclasses.replace(running, state="failed", error=str(error), command=[])
            return self._put(dataclasses.replace(ended, ended_at=now()))

    def _put(self, status: Status) -> Status:
        write_status(self.folder, status)
        return status

    @contextmanager
    def _alone(self, unit: Unit) -> Iterator[int]:
        """Wait for whoever works on the unit: also a command that outlived the ablation that started it."""
        path = status_path(self.folder, unit.id).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        told = False
        with ExitStack() as held:
            while True:
                if self.children.stopping:
                    raise StoppingError
                try:
                    descriptor = held.enter_context(locked_with_children(path))
                    break
                except TakenError as error:
                    if not told:
                        told = True
                        self.say(f"{unit.id}: {error}, or a command of its, is at work on it; waiting")
                time.sleep(LOOK_EVERY_S)
            yield descriptor

    def _forget_old_figures(self, unit: Unit, before: Status) -> None:
        """Of a config that measured something else, before it is forgotten that it did."""
        if before.hash.partition(".")[2] != unit.hash.partition(".")[2]:
            for name in MEASURED:
                (self.folder / unit.id / name).unlink(missing_ok=True)

    def _work(self, unit: Unit, running: Status, environment: Mapping[str, str], descriptor: int) -> Status:
        """Run what is left to do. Returns how it ended."""
        run_dir = self.folder / unit.id
        self._make_ready(unit, run_dir)
        log = log_path(self.folder, unit.id)
        log.parent.mkdir(parents=True, exist_ok=True)
        for command in self._commands(unit, run_dir):
            begun = log.stat().st_size if log.exists() else 0
            running = self._put(dataclasses.replace(running, command=command))
            returncode = self.children.call(command, log, environment, [descriptor])
            complete = returncode == 0 and (not is_training(command) or self._is_trained(unit, run_dir))
            if complete:
                continue
            if self.children.stopping:
                raise StoppingError
            error = last_words(log, begun)
            if returncode == 0:
                error = f"it was stopped by a signal from outside, with a checkpoint\n{error}"
            return dataclasses.replace(running, state="failed", returncode=returncode, error=error)
        return dataclasses.replace(running, state="done")

    def _make_ready(self, unit: Unit, run_dir: Path) -> None:
        """The config, and the stages that others have trained."""
        run_dir.mkdir(parents=True, exist_ok=True)
        config = unit.config
        if isinstance(config, RunConfig):
            source, stages = self._source(unit)
            if source is not None:
                adopt(source, run_dir, stages)
            for before, only in ((run_dir / CONFIG, None), (source and source / CONFIG, stages)):
                if before is not None and before.is_file():
                    config = as_before(config, before, only)
        text = to_yaml(config)
        path = run_dir / CONFIG
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            replace_text(path, text)

    def _source(self, unit: Unit) -> tuple[Path | None, tuple[str, ...]]:
        """The folder that the unit goes on from, and the stages to take. A shared unit may also find all of
        its own work done, by a cell that was trained before there was another to share it with."""
        if not unit.is_cell:
            for cell in self.plan.followers(unit.id):
                folder = self.folder / cell.id
                if all(is_whole(folder / stage / FINAL) for stage in unit.all_stages):
                    return folder, unit.all_stages
        if unit.after:
            return self.folder / unit.after[0], tuple(unit.takes)
        return None, ()

    def _commands(self, unit: Unit, run_dir: Path) -> Iterator[list[str]]:
        config = run_dir / CONFIG
        if isinstance(unit.config, PrismConfig):
            yield prism_command(config, self.launch.num_processes)
            return
        if not self._is_trained(unit, run_dir):
            yield train_command(config, unit.all_stages[-1], self.launch.num_processes)
        if unit.measured:
            yield evaluate_command(run_dir)

    def _is_trained(self, unit: Unit, run_dir: Path) -> bool:
        # the last first: where it is missing, nothing is hashed
        return all(is_whole(run_dir / stage / FINAL) for stage in reversed(unit.all_stages))


def blocked(unit: Unit, before: Status, undone: Sequence[str]) -> Status:
    """Failed, since what it needs is not there. What it holds is still of the config of before."""
    reason = f"needs {', '.join(undone)}, which failed or is not done: see there"
    return Status(unit.id, "failed", before.hash, attempts=before.attempts, ended_at=now(), error=reason)


def train_command(config: Path, last_stage: str, num_processes: int) -> list[str]:
    """Of cells no export is wanted: the trial of it before the first step is left out."""
    arguments = [str(config), "--resume", "auto", "--until", last_stage, "--no-dry-export"]
    if num_processes == 1:
        return [*prismcap(), "train", *arguments]
    return [*torchrun(num_processes), "-m", "prismcap.scripts.train", *arguments]


def is_training(command: Sequence[str]) -> bool:
    return "--until" in command


def evaluate_command(run_dir: Path) -> list[str]:
    return [*prismcap(), "evaluate", str(run_dir), "--missing"]


def prism_command(config: Path, num_processes: int) -> list[str]:
    if num_processes == 1:
        return [*prismcap(), "prism", "run", str(config)]
    return [*torchrun(num_processes), "-m", "prismcap.scripts.cli", "prism", "run", str(config)]


def prismcap() -> list[str]:
    """The command with this very Python: another may be first on the path."""
    return [sys.executable, "-m", "prismcap.scripts.cli"]


def torchrun(num_processes: int) -> list[str]:
    """On a port of 127.0.0.1 that the system finds free: several agents run at once."""
    return [
        *(sys.executable, "-m", TORCHRUN),
        *("--nnodes", "1", "--nproc-per-node", str(num_processes)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
    ]


def last_words(log: Path, begun: int) -> str:
    """The end of what a command wrote to `log` after its first `begun` bytes."""
    with log.open("rb") as file:
        file.seek(max(begun, os.fstat(file.fileno()).st_size - 4 * LAST_WORDS))
        text = file.read().decode(errors="replace")
    return text[-LAST_WORDS:].strip()
