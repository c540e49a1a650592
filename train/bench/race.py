"""Contenders in child processes, taking turns: what slows the machine down hits them all alike.

Kept light on purpose: this process must neither hold memory nor take a core while a contender runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from prismcap.configs.errors import ConfigError

Figures = dict[str, Any]

_ERROR_LINES = 15
_PATIENCE_S = 10.0


class BenchError(RuntimeError):
    """A child process died, or the contenders did not do the same work."""


class UnfitContender(RuntimeError):
    """A contender that says it cannot run here, or that the system killed for its memory."""


class Child:
    """A running contender. `label` is its name in errors."""

    def __init__(self, label: str, spec: Mapping[str, Any], num_threads: int) -> None:
        self.label = label
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prismcap.train.bench.child", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(num_threads),
                "MKL_NUM_THREADS": str(num_threads),
                "TOKENIZERS_PARALLELISM": "false",
            },
        )

    def ready(self) -> Figures:
        """Wait until it is set up. Raises as `run`."""
        return self._answer()

    def run(self, step: int) -> Figures:
        """One step's figures. Raises UnfitContender, ConfigError, or BenchError with what the child wrote."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"step": step}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died between two steps: its answer, or the lack of one, says how
        return self._answer()

    def _answer(self) -> Figures:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._raise_death()
        answer: Figures = json.loads(line)
        if "unfit" in answer:
            raise UnfitContender(answer["unfit"])
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer

    def _raise_death(self) -> None:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            raise UnfitContender("it was killed (signal 9), most likely for want of memory")
        self._errors.seek(0)
        written = "\n".join(self._errors.read().splitlines()[-_ERROR_LINES:])
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise BenchError(f"{self.label}: the child process died ({how}). It wrote:\n{written or '(nothing)'}")

    def close(self) -> None:
        """End it; by force when it does not end by itself."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


@contextmanager
def started(label: str, spec: Mapping[str, Any], num_threads: int) -> Iterator[Child]:
    """A child that is set up, ended at the end whatever happens."""
    child = Child(label, spec, num_threads)
    try:
        child.ready()
        yield child
    finally:
        child.close()


def alternate(
    specs: Mapping[str, Mapping[str, Any]], warm_up: int, steps: Sequence[int], num_threads: int
) -> tuple[dict[str, Figures], dict[str, list[Figures]]]:
    """Figures of every contender: those of the warm-up step, and those of the measured ones.

    All children live at once and one of them works at a time. Each makes step k before any makes step k + 1;
    who begins changes from step to step. Raises BenchError, also for a contender that turns out unfit.
    """
    names = list(specs)
    with ExitStack() as stack:
        try:
            children = {
                name: stack.enter_context(started(name, spec, num_threads)) for name, spec in specs.items()
            }
            warm = {name: child.run(warm_up) for name, child in children.items()}
            figures: dict[str, list[Figures]] = {name: [] for name in names}
            for turn, step in enumerate(steps):
                first = turn % len(names)
                for name in names[first:] + names[:first]:
                    figures[name].append(children[name].run(step))
        except UnfitContender as error:
            raise BenchError(f"a contender cannot run here: {error}") from error
    return warm, figures
