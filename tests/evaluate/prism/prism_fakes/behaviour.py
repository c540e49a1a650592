"""What the fakes share: they count in a file, can be slow, fail, and kill their own process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prismcap.configs.schema.base import Section
from prismcap.evaluate.clients.answer import Answer, failed


class Behaviour(Section):
    """log: a line for each request, appended at once. kill_file: while it exists, the process that has
    answered `kill_after` requests deletes it and dies. failing: question ids. fail_file: all fail while it
    exists."""

    log: str | None = None
    delay_s: float = 0.0
    kill_after: int = 0
    kill_file: str | None = None
    fail_file: str | None = None
    weights: str = "1"

    def answers(self, asked: Iterable[tuple[str, str]]) -> Iterator[tuple[int, Answer]]:
        """asked: (what the log says, the answer's text) of each request; the last first, to be unordered."""
        for done, (position, (line, text)) in enumerate(reversed(list(enumerate(asked)))):
            if self.kill_file and done == self.kill_after and Path(self.kill_file).exists():
                Path(self.kill_file).unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.log is not None:
                with open(self.log, "ab", buffering=0) as file:
                    file.write(f"{line}\n".replace("\n", " ").strip().encode() + b"\n")
            time.sleep(self.delay_s)
            if self.fail_file and Path(self.fail_file).exists():
                yield position, failed("no answer today", retries=1)
            else:
                yield position, Answer(text, finish_reason="stop", tokens_in=10, tokens_out=5, latency_s=0.01)
