"""Asynchronous work behind a plain iterator: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Emit = Callable[[T], None]


class _End(Generic[T]):
    """The last thing in the queue: the work is over, or has raised."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def results_of(work: Callable[[Emit[T]], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """What `work` emits, each at once. What it raises is raised here, after all that it emitted.

    Closing the iterator, or an exception where it is waited for (KeyboardInterrupt), cancels the work and
    waits for its end.
    """
    results: SimpleQueue[T | _End[T]] = SimpleQueue()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def noted() -> None:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        await work(results.put)

    def run() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(noted())
        except BaseException as raised:  # noqa: BLE001  (it is raised again, in the other thread)
            error = raised
            if not started.done():
                started.set_exception(raised)
        results.put(_End(error))

    thread = Thread(target=run, name="requests", daemon=True)
    thread.start()
    try:
        while not isinstance(result := results.get(), _End):
            yield result
        if result.error is not None:
            raise result.error
    finally:
        _cancel(*started.result())
        thread.join()


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    try:
        loop.call_soon_threadsafe(task.cancel)
    except RuntimeError:  # closed: the work had ended
        return
