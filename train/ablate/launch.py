"""All units of an ablation in the order of their waves, several at once; what fails stops nothing else."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.train.ablate.children import StoppingError
from prismcap.train.ablate.status import Status, is_done, log_path, now, read_status, write_status
from prismcap.train.ablate.unit_run import UnitRunner, blocked
from prismcap.train.ablate.units import Unit
from prismcap.train.checkpoint import FINAL, step_folders
from prismcap.train.runfolder import CONFIG, comparable, differences
from prismcap.train.settle import as_before

LOOK_EVERY_S = 0.2
STOPPED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# a launcher may hand on what the terminal has sent already: that is no second Ctrl-C
SAME_S = 1.0
_Result = tuple[str, int, Status | None]  # unit, slot, and its status; None: stopped


@dataclass(frozen=True)
class Outcome:
    """failed: units, with their status. stopped_by: the signal that ended it, if one did."""

    failed: Mapping[str, Status]
    stopped_by: signal.Signals | None = None


def run_units(runner: UnitRunner, wanted: Sequence[str] | None = None, retry_failed: bool = False) -> Outcome:
    """Run what is not done yet, `launch.parallel` units at once. wanted: these alone, in place of all.

    What failed before is left as it is, unless retry_failed, or its config has changed. Signals end the
    commands, training with a checkpoint. Raises ConfigError, before anything runs, where a unit holds the
    work of another config.
    """
    units = [unit for unit in runner.plan.units.values() if wanted is None or unit.id in wanted]
    refuse_changed(runner.folder, units)
    pending = pending_units(runner.folder, units, retry_failed)
    schedule = _Schedule(runner, pending)
    with _noting_signals() as noted:
        schedule.run(noted)
    statuses = {unit.id: read_status(runner.folder, unit.id) for unit in units}
    failed = {key: status for key, status in statuses.items() if status and status.state == "failed"}
    return Outcome(failed, noted.first)


def pending_units(folder: Path, units: Sequence[Unit], retry_failed: bool) -> list[Unit]:
    """What is to be tried, marked as waiting where it had failed or nothing was known of it."""
    pending = []
    for unit in units:
        status = read_status(folder, unit.id)
        tried = status is not None and status.state == "failed" and not status.is_blocked
        kept = tried and status is not None and status.hash == unit.hash and not retry_failed
        if kept or is_done(folder, unit):
            continue
        pending.append(unit)
        if status is None or status.state == "failed":
            # the hash of before, which says of what the figures there are
            attempts, hash_ = (status.attempts, status.hash) if status else (0, unit.hash)
            write_status(folder, Status(unit.id, "waiting", hash_, attempts=attempts))
    return pending


def refuse_changed(folder: Path, units: Sequence[Unit]) -> None:
    """Raise ConfigError for run folders with checkpoints of another training than the units now are."""
    found = []
    for unit in units:
        status, config = read_status(folder, unit.id), unit.config
        if status is None or not isinstance(config, RunConfig):
            continue
        if status.hash.partition(".")[0] == unit.hash.partition(".")[0] or not _has_work(folder / unit.id):
            continue
        changed = _changed_keys(folder / unit.id / CONFIG, config)
        found.append(f"{folder / unit.id} was trained with another config:\n    " + "\n    ".join(changed))
    if found:
        raise ConfigError(
            "\n".join(found)
            + "\nSet these keys back, give the ablation another name (name=…), or remove these folders to "
            "train them anew."
        )


def _has_work(run_dir: Path) -> bool:
    return any(
        (stage / FINAL).is_dir() or step_folders(stage) for stage in run_dir.glob("*") if stage.is_dir()
    )


def _changed_keys(before: Path, config: RunConfig) -> list[str]:
    if not before.is_file():
        return ["its config.yaml is not there any more"]
    saved, config = load_config(before), as_before(config, before)
    then, now_ = (
        {k: v for stage in of.stages for k, v in comparable(of, stage).items()} for of in (saved, config)
    )
    return differences(then, now_) or ["the order of the stages"]


@dataclass
class _Signals:
    """What came, in order; the loop looks."""

    first: signal.Signals | None = None
    first_s: float = 0.0
    again: bool = False

    def note(self, number: int, frame: object) -> None:  # noqa: ARG002  (the signature of a handler)
        if self.first is None:
            self.first, self.first_s = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.first_s > SAME_S:
            self.again = True


@contextmanager
def _noting_signals() -> Iterator[_Signals]:
    """In other threads than the main one, where Python has no signals, nothing is noted."""
    noted = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.signal(number, noted.note) for number in STOPPED_BY}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@dataclass
class _Schedule:
    """Starts a unit as soon as a place is free and what it needs is done."""

    runner: UnitRunner
    pending: list[Unit]
    running: dict[str, threading.Thread] = field(default_factory=dict)
    results: queue.Queue[_Result] = field(default_factory=queue.Queue)
    free: list[int] = field(default_factory=list)
    asked: int = 0  # how urgently to stop

    def run(self, noted: _Signals) -> None:
        total = len(self.pending)
        self.free = list(range(self.runner.launch.parallel))
        while self.pending or self.running:
            self._obey(noted)
            if self.asked == 0:
                self._start_ready()
            if not self.running:
                break
            try:
                unit_id, slot, status = self.results.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                continue
            self.running.pop(unit_id).join()
            self.free.append(slot)
            if status is not None:
                left = len(self.pending) + len(self.running)
                self.runner.say(f"[{total - left}/{total}] {unit_id}: {_words(self.runner.folder, status)}")

    def _obey(self, noted: _Signals) -> None:
        if noted.first is not None and self.asked == 0:
            self.asked = 1
            self.runner.say(f"{noted.first.name}: stopping; training writes a checkpoint first")
            self.runner.children.stop()
        if noted.again and self.asked == 1:
            self.asked = 2
            self.runner.children.stop(at_once=True)

    def _start_ready(self) -> None:
        folder, all_units = self.runner.folder, self.runner.plan.units
        for unit in list(self.pending):
            if not self.free:
                return  # what others need is on disk: it is looked at when it matters
            waits_for = [other.id for other in self.pending if other.id in unit.after]
            waits_for += [other for other in unit.after if other in self.running]
            if waits_for:
                continue
            undone = [other for other in unit.after if not is_done(folder, all_units[other])]
            if undone:
                self.pending.remove(unit)
                before = read_status(folder, unit.id) or Status(unit.id, "waiting", unit.hash)
                write_status(folder, blocked(unit, before, undone))
                self.runner.say(f"{unit.id}: not tried: it needs {', '.join(undone)}")
            else:
                self.pending.remove(unit)
                self._start(unit.id, self.free.pop(0))

    def _start(self, unit_id: str, slot: int) -> None:
        thread = threading.Thread(target=self._run, args=(unit_id, slot), daemon=True)
        self.running[unit_id] = thread
        self.runner.say(f"{unit_id}: {log_path(self.runner.folder, unit_id)}")
        thread.start()

    def _run(self, unit_id: str, slot: int) -> None:
        launch = self.runner.launch
        status: Status | None
        try:
            environment = environment_of(slot, launch.parallel, launch.num_processes, _num_gpus)
            status = self.runner.run(unit_id, environment)
        except StoppingError:
            status = None
        except Exception:  # noqa: BLE001  (our own mistake: it must not take the other units with it)
            unit = self.runner.plan.units[unit_id]
            error = traceback.format_exc()
            status = Status(unit_id, "failed", unit.hash, ended_at=now(), error=error, command=[])
            write_status(self.runner.folder, status)
        self.results.put((unit_id, slot, status))


def _words(folder: Path, status: Status) -> str:
    if status.state == "done":
        return "done"
    lines = (status.error or "").splitlines()
    return f"{status.state}: {lines[-1] if lines else 'no word'} ({log_path(folder, status.unit)})"


def environment_of(
    slot: int, parallel: int, num_processes: int, num_gpus: Callable[[], int]
) -> dict[str, str]:
    """Of the commands in one of the places that run at once: its share of the GPUs and of the cores."""
    environment = dict(os.environ)
    if parallel == 1:
        return environment
    cores = os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // (parallel * num_processes))))
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = visible or [str(number) for number in range(num_gpus())]
    if len(visible) >= num_processes:
        own = [visible[(slot * num_processes + i) % len(visible)] for i in range(num_processes)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return environment


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
