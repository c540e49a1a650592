"""The subprocesses of an ablation, so that a signal reaches them all, and no other process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

TORCHRUN = "torch.distributed.run"


class StoppingError(Exception):
    """The ablation was asked to stop: nothing is started any more."""


class Children:
    """Starts commands and waits for them, from several threads at once; `stop` ends them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], bool] = {}  # whether it is torchrun's agent
        self.stopping = False

    def call(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], keep_open: Sequence[int] = ()
    ) -> int:
        """Run a command to its end, what it says appended to `log`. Returns its exit code; -N of signal N.

        keep_open: descriptors that it inherits. Raises StoppingError, and OSError where it cannot be started.
        """
        with log.open("ab") as file:
            file.write(f"\n$ {' '.join(command)}\n".encode())
            file.flush()
            with self._lock:
                if self.stopping:
                    raise StoppingError
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    pass_fds=tuple(keep_open),
                    # what the terminal sends is for the ablation, which tells each child once
                    start_new_session=True,
                )
                self._running[process] = TORCHRUN in command
        try:
            return process.wait()
        finally:
            with self._lock:
                del self._running[process]

    def stop(self, at_once: bool = False) -> None:
        """Start nothing more, and end what runs: training with a checkpoint, or at once without. Not to be
        called in the handler of a signal, which may have come while the lock was held."""
        with self._lock:
            self.stopping = True
            running = list(self._running.items())
        for process, is_agent in running:
            # torchrun's agent would hand a signal on to loader workers as well, and kill ranks after 30 s
            ranks = _children_of(process.pid) if is_agent else []
            if at_once:
                _signal([*ranks, process.pid], signal.SIGKILL)
            elif ranks:
                _signal(ranks, signal.SIGUSR1)
            else:
                _signal([process.pid], signal.SIGTERM)


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _children_of(parent: int) -> list[int]:
    """None where there is no `ps`."""
    try:
        table = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    rows = (line.split() for line in table.splitlines())
    return [int(pid) for pid, ppid in rows if int(ppid) == parent]
