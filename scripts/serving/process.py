"""A server as a process of its own: started, waited for, told what this one is told, ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from prismcap.scripts.serving.backends import ServerCommand

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.2
END_TIMEOUT_S = 10.0


def run_server(
    command: ServerCommand, is_ready: Callable[[], bool], on_ready: Callable[[], None]
) -> tuple[int, bool]:
    """Run a server to its end. Returns its exit code (128 + n after signal n), and whether it was ever ready.

    is_ready is asked until it says yes or the server has ended; then on_ready is called once. SIGINT,
    SIGTERM and SIGHUP go on to the server. Whatever happens, the server has ended when this returns, and so
    have the processes that it started and left behind.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in HANDED_ON}
    try:
        # a session of its own: a terminal's Ctrl-C reaches it once, through this process
        process = subprocess.Popen(
            [*command.arguments, *command.options],
            cwd=command.folder,
            env={**os.environ, **command.environment},
            start_new_session=True,
        )
        for number in early:
            process.send_signal(number)
        ready = _wait_until(is_ready, process)
        if ready:
            on_ready()
        code = process.wait()
    finally:
        if process is not None:
            _end(process)
        for number, handler in before.items():
            signal.signal(number, handler)
    return (128 - code if code < 0 else code), ready


def _wait_until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    while process.poll() is None:
        if is_ready():
            return True
        time.sleep(POLL_S)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + END_TIMEOUT_S
    while _signal_group(process, 0) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Signal the server and what it has started. False when none of them is left."""
    process.poll()  # one that has ended is of the group until it is waited for
    try:
        # the leader of its session, and so of its group
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
