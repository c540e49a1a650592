"""A data worker does not outlive a killed parent, and the death of a worker is told and not waited out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from prismcap.data.workers import WorkerDiedError, read_ahead

PARENT = """
import sys, time
import numpy as np
from torch.utils.data import DataLoader, Dataset
from prismcap.data.workers import die_with_parent


class Large(Dataset):
    def __len__(self): return 50

    def __getitem__(self, index):
        import os
        if index == 0:
            open(sys.argv[1], "w").write(str(os.getpid()))
        return np.zeros(4_000_000, dtype=np.uint8)


def same(item): return item


init = die_with_parent if sys.argv[2] == "with" else None
loader = DataLoader(Large(), batch_size=None, num_workers=1, worker_init_fn=init, collate_fn=same)
steps = iter(loader)
next(steps)
print("ready", flush=True)
time.sleep(600)
"""


def worker_after_kill(folder: Path, how: str) -> bool:
    """Whether the worker still runs seconds after its parent was killed."""
    script, note = folder / "parent.py", folder / "worker"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(note), how], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    worker = int(note.read_text())
    parent.kill()
    parent.wait()
    for _ in range(80):
        time.sleep(0.1)
        try:
            state = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
    os.kill(worker, signal.SIGKILL)
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")
def test_a_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    assert not worker_after_kill(tmp_path, "with")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")
def test_without_it_the_worker_stays(tmp_path: Path) -> None:
    """Why it is there: should torch ever mend this, the call can go."""
    assert worker_after_kill(tmp_path, "without")


class Dying(Dataset[Any]):
    """Item 2 does not come: its worker gets a signal, or ends by itself."""

    def __init__(self, how: signal.Signals | None) -> None:
        self.how = how

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            if self.how is None:
                os._exit(3)
            os.kill(os.getpid(), self.how)
            time.sleep(60)
        return index, os.getpid()


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize(
    ("how", "told"),
    [
        (signal.SIGKILL, r"killed by SIGKILL.*memory.*data\.num_workers"),
        (signal.SIGBUS, r"killed by SIGBUS.*shm-size"),
        (signal.SIGSEGV, r"killed by SIGSEGV.*data\.num_workers=0"),
        (None, "exit code 3"),
    ],
)
def test_the_death_of_a_worker_is_an_error_that_says_why(
    how: signal.Signals | None, told: str, num_workers: int
) -> None:
    items = read_ahead(Dying(how), num_workers, batch_size=None, sampler=range(8), prefetch_factor=2)
    with pytest.raises(WorkerDiedError, match=told):
        for _ in items:
            pass
    # the next reader is not harmed
    again = read_ahead(Dying(how), num_workers, batch_size=None, sampler=range(3, 8))
    assert [index for index, _ in again] == [3, 4, 5, 6, 7]


def busy(seconds: float) -> None:
    """Stands for a training step: it wants no exception from outside."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def test_a_death_is_told_when_data_are_asked_for_and_not_within_a_step() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    items = read_ahead(Dying(signal.SIGKILL), 1, batch_size=None, sampler=range(3, 100), prefetch_factor=2)
    _, worker = next(items)
    os.kill(worker, signal.SIGKILL)
    busy(0.5)
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        next(items)
    # the first loader of the process leaves torch's handler behind, which stays
    assert before in (signal.SIG_DFL, signal.getsignal(signal.SIGCHLD))


class Large(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return np.full(50_000_000, index % 256, dtype=np.uint8)


def test_a_worker_that_dies_while_it_hands_on_an_item_does_not_hang_the_reader() -> None:
    """A reader in the middle of an item waits for bytes that never come; only a signal gets it out."""
    items: Iterator[Any] = read_ahead(Large(), 1, batch_size=None, sampler=range(10_000), prefetch_factor=2)
    next(items)
    (worker,) = [child for child in multiprocessing.active_children() if child.is_alive()]
    assert worker.pid is not None
    timer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        for _ in items:
            pass
    timer.join()


def test_a_workers_own_error_stays_what_it_is() -> None:
    class Wrong(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            raise RuntimeError(f"item {index}")

    with pytest.raises(RuntimeError, match="item 0"):
        list(read_ahead(Wrong(), 1, batch_size=None, sampler=range(2)))
