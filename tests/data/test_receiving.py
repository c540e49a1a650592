"""The next item is received while the last one is worked on: in order, one ahead, nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from prismcap.data.loader import StepData, _Packed, _Pinned
from prismcap.data.pack import empty_batch
from prismcap.data.workers import WorkerDiedError, read_ahead

PATIENCE_S = 60  # never waited for, unless the test fails


class Numbers(Dataset[Any]):
    """Item i is i, later the smaller it is; one of them is an error."""

    def __init__(self, wrong: int = -1) -> None:
        self.wrong = wrong

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05 * (index < 2))
        if index == self.wrong:
            raise KeyError(f"item {index}")
        return index


class Arrival:
    """What `prepare` was called for, in which threads."""

    def __init__(self, wrong: int = -1) -> None:
        self.wrong = wrong
        self.seen: list[int] = []
        self.threads: set[str] = set()
        self.came = [threading.Event() for _ in range(20)]

    def __call__(self, item: int) -> int:
        self.seen.append(item)
        self.threads.add(threading.current_thread().name)
        self.came[item].set()
        if item == self.wrong:
            raise KeyError(f"item {item}")
        return item * 10


def read(
    dataset: Dataset[Any], num_workers: int, prepare: Callable[[Any], Any] | None = None
) -> Iterator[Any]:
    return read_ahead(dataset, num_workers, prepare, batch_size=None, sampler=range(8))


def nothing_is_left() -> bool:
    names = {thread.name for thread in threading.enumerate()}
    return "prismcap-receiver" not in names and not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_next_item_comes_while_the_last_one_is_worked_on(num_workers: int) -> None:
    arrival = Arrival()
    items = read(Numbers(), num_workers, arrival)
    for number in range(7):
        assert next(items) == number * 10
        assert arrival.came[number + 1].wait(PATIENCE_S), "nobody asks for it, and it comes"
        time.sleep(0.02)
        assert arrival.seen == list(range(number + 2)), "one ahead and no more"
    assert list(items) == [70]
    assert threading.current_thread().name not in arrival.threads


def test_without_workers_items_are_read_when_they_are_asked_for() -> None:
    arrival = Arrival()
    items = read(Numbers(), 0, arrival)
    assert next(items) == 0 and next(items) == 10
    assert arrival.seen == [0, 1] and arrival.threads == {threading.current_thread().name}


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("place", ["worker", "prepare"])
def test_an_error_comes_in_its_items_turn(num_workers: int, place: str) -> None:
    arrival = Arrival(3 if place == "prepare" else -1)
    items = read(Numbers(3 if place == "worker" else -1), num_workers, arrival)
    assert [next(items) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(KeyError, match="item 3"):
        next(items)
    assert list(items) == []
    assert nothing_is_left()


@pytest.mark.parametrize("num_taken", [0, 1, 8])
def test_a_reader_that_is_left_ends_its_workers_and_its_thread(num_taken: int) -> None:
    items = read(Numbers(), 2)
    for _ in range(num_taken):
        next(items)
    del items
    assert nothing_is_left()


def test_a_reader_of_half_an_item_is_no_thread_for_ever() -> None:
    class Large(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return np.full(50_000_000, index % 256, dtype=np.uint8)

    items: Iterator[Any] = read_ahead(Large(), 1, batch_size=None, sampler=range(10_000))
    next(items)
    (worker,) = multiprocessing.active_children()
    threading.Timer(0.3, worker.kill).start()
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        for _ in items:
            pass
    assert nothing_is_left()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pinning_is_done_where_items_are_received_on_the_ranks_device(
    num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tests/gpu/test_inputs.py runs, without a GPU. A new thread's device is the first one."""
    device = threading.local()
    pinned_on: list[tuple[str, int]] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned_on.append((threading.current_thread().name, getattr(device, "index", 0)))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: setattr(device, "index", index))
    (*_, last) = read(Steps(), num_workers, _Pinned(device=3))
    assert isinstance(last, StepData) and last.step == 7
    thread = threading.current_thread().name if num_workers == 0 else "prismcap-receiver"
    assert set(pinned_on) == {(thread, 3)} and len(pinned_on) == 8 * 8


class Steps(Dataset[Any]):
    """As the loader's: a step of one batch."""

    def __getitem__(self, step: int) -> _Packed:
        batch = empty_batch(pad_id=0)
        batch.tiles = torch.zeros(400, 3, 32, 32)
        return _Packed(StepData(step, [batch], (), {}, 0))


def in_shared_memory(process: int) -> set[Path]:
    """What a process has open or mapped of it, removed or not."""
    fds = [os.readlink(fd) for fd in Path(f"/proc/{process}/fd").iterdir() if fd.is_symlink()]
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    names = [name for name in [*fds, *(line[line.find("/") :] for line in lines)] if "/dev/shm/" in name]
    return {Path(name.removesuffix(" (deleted)")) for name in names}


def train(told: Connection) -> None:
    """A run in the middle of its first step."""
    items = read(Steps(), 1, _Packed.unpacked)
    next(items)
    told.send(multiprocessing.active_children()[0].pid)
    time.sleep(600)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("killed", ["run", "worker"])
def test_kill_9_leaves_nothing_in_shared_memory(killed: str) -> None:
    told, tell = multiprocessing.Pipe(duplex=False)
    run = multiprocessing.get_context("fork").Process(target=train, args=(tell,))
    run.start()
    assert run.pid is not None and told.poll(PATIENCE_S)
    worker: int = told.recv()
    time.sleep(0.3)  # by now it has handed on what it may read ahead
    used = in_shared_memory(run.pid) | in_shared_memory(worker)
    if killed == "worker":
        os.kill(worker, signal.SIGKILL)
        time.sleep(0.3)
    run.kill()
    run.join()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.1)
    assert used, "semaphores at least, or this test sees nothing"
    assert [path for path in used if path.exists()] == []
