"""`prismcap serve` as a user starts it: a process that is waited for and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prismcap.scripts.serving.client import Address

FAKE_VLLM = Path(__file__).parent / "fake_vllm"
START_TIMEOUT_S = 180


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """A running command: where its server is, and what it said once that answered."""

    process: subprocess.Popen[str]
    address: Address
    said: str

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the command, as a shell or a scheduler does, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextmanager
def serving(
    model: Path, log: Path, *options: str, folder: Path | None = None, **environment: str
) -> Iterator[Served]:
    """The command, up to its last line of output once the server answers. Ended, if the test has not."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "prismcap.scripts.cli",
        "serve",
        str(model),
        "--port",
        str(port),
        *options,
    ]
    with log.open("w") as err:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            cwd=folder,
            # as a machine behind a proxy: nothing may be sent there
            env={
                **os.environ,
                "http_proxy": "http://127.0.0.1:9",
                "HTTP_PROXY": "http://127.0.0.1:9",
                **environment,
            },
        )
        try:
            yield Served(process, Address("127.0.0.1", port), read_until_ready(process, log))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)


def read_until_ready(process: subprocess.Popen[str], log: Path) -> str:
    """What stdout says up to the line for a shell, which is the last."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("printf "):
            return "".join(lines)
    raise AssertionError(f"the server ended with {process.wait()}: {''.join(lines)}{log.read_text()[-3000:]}")


def fake_vllm(out: Path, pieces: str = "[]", **more: str) -> dict[str, str]:
    """The environment in which `vllm` is the stand-in."""
    path = f"{FAKE_VLLM}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "FAKE_OUT": str(out), "FAKE_PIECES": pieces, **more}
