"""Locks on files that the system lets go of however the process ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TakenError(Exception):
    """Another process has the lock; the text says which."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for this process alone.

    lockf and not flock: the latter would live on in a loader worker that outlives a killed run.
    Raises TakenError at once when it is held; OSError where the file cannot be opened or locked.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise TakenError(file.read().strip() or "unknown") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextmanager
def locked_with_children(path: Path) -> Iterator[int]:
    """Hold the lock file `path` for this process and every child that is handed the descriptor yielded: who
    dies leaves it to the children that live on. Raises TakenError at once when it is held; OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TakenError(os.pread(descriptor, 200, 0).decode().strip() or "unknown") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
