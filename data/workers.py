"""Reading ahead in worker processes, the same way everywhere."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from prismcap.configs.errors import DataError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_END = object()
_LOOK_EVERY_S = 0.1  # at the workers, while an item is waited for
_PATIENCE_S = 5  # with a worker in the middle of an item, once nobody wants it

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


def read_ahead(
    dataset: Dataset[Any], num_workers: int, prepare: Callable[[Any], Any] | None = None, **options: Any
) -> Iterator[Any]:
    """Items as they are, or what `prepare` makes of them, read in workers that die with this process. The
    next one is received and prepared in a thread, while the caller works on the last. The global random
    generator is left alone (else dropout would differ after a resume).

    Raises what a worker or `prepare` raised, in the item's turn; WorkerDiedError, when the next item is asked
    for, once a worker has died.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=die_with_parent,
        generator=torch.Generator(),
        **options,
    )
    prepare = prepare or _as_is
    if not num_workers:
        yield from map(prepare, loader)
        return
    others = set(active_children())
    items = iter(loader)
    workers = [child for child in active_children() if child not in others]
    _let_them_be_ended(workers)
    with _without_torchs_handler():
        receiver = _Receiver(items, workers, prepare)
        try:
            while (item := receiver.next()) is not _END:
                yield item
        finally:
            receiver.close()


def _let_them_be_ended(workers: Sequence[BaseProcess]) -> None:
    """Make terminate() a kill: workers ignore SIGTERM, by which torch and Python end those that do not end by
    themselves, such as one that is stuck reading. The exit of this process would wait for them for ever."""
    for worker in workers:
        process: Any = worker
        # below Process.terminate(), since at exit multiprocessing goes past that
        process._popen.terminate = process._popen.kill


@contextmanager
def _without_torchs_handler() -> Iterator[None]:
    """Within, the death of a worker interrupts nothing. torch's handler of SIGCHLD, set by the first loader,
    would raise wherever this process is: in the middle of a training step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    torchs = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, torchs or signal.SIG_DFL)


class _Receiver:
    """Receives the next item in a thread while the last one is worked on, one ahead and no more.

    What a step needs, megabytes, takes tens of milliseconds to come through a worker's pipe. And a worker
    that dies in the middle of it leaves its reader waiting for ever: better a thread than this process.
    """

    def __init__(self, items: Any, workers: Sequence[BaseProcess], prepare: Callable[[Any], Any]) -> None:
        self._items, self._workers, self._prepare = items, workers, prepare
        self._received: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._wanted = threading.Semaphore(1)
        self._is_closed = False
        self._thread = threading.Thread(target=self._receive, name="prismcap-receiver", daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """The next item, or _END. Raises WorkerDiedError for a worker that is dead, or dies meanwhile."""
        while True:
            self._check()
            try:
                item, error = self._received.get(timeout=_LOOK_EVERY_S)
            except Empty:
                continue
            if error is not None:
                self._check()  # torch noticed first, and says less
                raise error
            self._wanted.release()
            return item

    def close(self) -> None:
        """End workers and thread: those that are stuck, and all when one has died, by force."""
        if sys.is_finalizing():
            return  # Python has killed the workers, and stopped its threads
        self._is_closed = True
        self._wanted.release()
        if not any(worker.exitcode for worker in self._workers):
            self._thread.join(_PATIENCE_S)
        for worker in self._workers:
            worker.kill()
            worker.join()
        # the last open end of the pipe: a thread that waits for the rest of an item meets its end instead
        self._items._worker_result_queue._writer.close()
        self._thread.join(_PATIENCE_S)

    def _receive(self) -> None:
        try:
            while self._receive_one():
                pass
        except BaseException as error:  # noqa: BLE001  (raised by next(), which waits for something)
            self._received.put((None, error))
        finally:
            self._items._shutdown_workers()

    def _receive_one(self) -> bool:
        """Whether there may be another."""
        self._wanted.acquire()
        if self._is_closed:
            return False
        item = next(self._items, _END)
        self._received.put((item if item is _END else self._prepare(item), None))
        return item is not _END

    def _check(self) -> None:
        for worker in self._workers:
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
