"""Reading ahead in worker processes, the same way everywhere."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from prismcap.configs.errors import DataError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_END = object()

_REMEDIES = {
    signal.SIGKILL: "most likely memory was used up, and the system killed it: lower data.num_workers, or "
    "give the job more memory",
    signal.SIGBUS: "most likely shared memory was used up: lower data.num_workers, or give the container "
    "more (docker run --shm-size)",
    signal.SIGTERM: "somebody ended it, as schedulers do before they end the job",
}
_OTHER_REMEDY = "data.num_workers=0 reads in the main process, where the cause can be seen"


class WorkerDiedError(DataError):
    """A data worker is gone. The message names its signal and the remedy."""


def die_with_parent(worker: int = 0) -> None:  # noqa: ARG001  (the signature of DataLoader's worker_init_fn)
    """End this worker when its parent ends, however that ends (on Linux), and not when a job is signalled.

    A worker whose parent was killed waits for ever to hand on its last batch, and keeps the memory that
    it shared with the parent: after a kill -9 the resumed run would find the machine half full.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        # schedulers and launchers signal every process of a job; the parent still needs its step's data
        signal.signal(number, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def read_ahead(dataset: Dataset[Any], num_workers: int, **options: Any) -> Iterator[Any]:
    """Items as they are, read in workers that die with this process. The global random generator is left
    alone (else dropout would differ after a resume).

    Raises WorkerDiedError, when the next item is asked for, once a worker has died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=die_with_parent,
        generator=torch.Generator(),
        **options,
    )
    others = set(active_children())
    items = iter(loader)
    workers = [child for child in active_children() if child not in others]
    _let_them_be_ended(workers)
    watch = _Watch(workers)
    with watch.instead_of_torch():
        while (item := watch.next(items)) is not _END:
            yield item


def _let_them_be_ended(workers: Sequence[BaseProcess]) -> None:
    """Make terminate() a kill: workers ignore SIGTERM, by which torch and Python end those that do not end by
    themselves, such as one that is stuck reading. The exit of this process would wait for them for ever."""
    for worker in workers:
        process: Any = worker
        # below Process.terminate(), since at exit multiprocessing goes past that
        process._popen.terminate = process._popen.kill


class _Watch:
    """Tells when a worker has died: while an item is waited for, and not in the middle of a training step,
    where torch's own handler of SIGCHLD would raise."""

    def __init__(self, workers: Sequence[BaseProcess]) -> None:
        self.workers = workers
        self.is_reading = False

    @contextmanager
    def instead_of_torch(self) -> Iterator[None]:
        """Puts this watch in the place of torch's handler. It was set by the first DataLoader."""
        if not self.workers or threading.current_thread() is not threading.main_thread():
            yield
            return
        torchs = signal.signal(signal.SIGCHLD, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, torchs or signal.SIG_DFL)

    def next(self, items: Iterator[Any]) -> Any:
        """The next item, or _END. Raises WorkerDiedError for one that is dead, or dies meanwhile."""
        self.is_reading = True
        try:
            self._check()
            return next(items, _END)
        except RuntimeError:
            self._check()  # torch noticed first, and says less
            raise
        finally:
            self.is_reading = False

    def _on_signal(self, *_: object) -> None:
        # raising is the only way out of a read that the dead worker has begun to answer
        if self.is_reading:
            self._check()

    def _check(self) -> None:
        for worker in self.workers:
            code = worker.exitcode
            if code:
                raise WorkerDiedError(_explain(worker.pid, code))


def _explain(pid: int | None, code: int) -> str:
    if code > 0:
        return f"data worker {pid} ended with exit code {code}: {_OTHER_REMEDY}"
    number = signal.Signals(-code)
    return f"data worker {pid} was killed by {number.name}: {_REMEDIES.get(number, _OTHER_REMEDY)}"


def _as_is(item: Any) -> Any:
    return item
