"""Asked to stop (SLURM's pre-emption, `kill`, Ctrl-C), a run ends after the step that it is in.

Only while steps are made: at any other time there is nothing to save, a signal does what it always does,
and the run goes on from its newest checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prismcap.train.distributed import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# a launcher hands on what the terminal has sent to every process already: that is no second Ctrl-C
_SAME_S = 1.0


class StoppedError(Exception):
    """The run was asked to stop, and has stopped after a step, with a checkpoint."""

    def __init__(self, stopped_by: signal.Signals, stage: str, step: int, total_steps: int) -> None:
        super().__init__(
            f"stopped by {stopped_by.name} after step {step} of {total_steps} of stage {stage}; nothing is "
            "lost: go on with --resume auto"
        )
        self.stopped_by = stopped_by

    @property
    def exit_code(self) -> int:
        """0, so that a scheduler counts no failure; after Ctrl-C 130, so that a calling script ends too."""
        return 128 + self.stopped_by if self.stopped_by == signal.SIGINT else 0


class StopRequest:
    """Whether this process was asked to stop. It stays asked, from one stage to the next."""

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._asked_s = 0.0

    def agreed(self, ranks: Ranks) -> signal.Signals | None:
        """What some rank was asked to stop by, the same on every rank. Collective."""
        number = int(ranks.max([self._asked or 0])[0])
        return signal.Signals(number) if number else None

    @contextmanager
    def noting_signals(self) -> Iterator[None]:
        """Within, SIGTERM, SIGUSR1 and the first SIGINT are noted; a second SIGINT is at once.

        What the process was started to ignore stays ignored. In other threads than the main one, where
        Python has no signals, nothing is noted.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        ours = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
        for number in ours:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, before[number] or signal.SIG_DFL)

    def _note(self, number: int, frame: object) -> None:  # noqa: ARG002  (the signature of a handler)
        asked, now_s = signal.Signals(number), time.monotonic()
        if asked == signal.SIGINT == self._asked and now_s - self._asked_s > _SAME_S:
            raise KeyboardInterrupt
        if self._asked is None:
            self._asked, self._asked_s = asked, now_s
            if asked == signal.SIGINT:
                # not through sys.stderr, which the signal may have come in the middle of
                os.write(2, b"\nStopping after this step, with a checkpoint. Ctrl-C again: at once.\n")
