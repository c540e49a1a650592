"""What every data worker does first."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(worker: int = 0) -> None:  # noqa: ARG001  (the signature of DataLoader's worker_init_fn)
    """End this worker when its parent ends, however that ends. Linux; elsewhere nothing happens.

    A worker whose parent was killed waits for ever to hand on its last batch, and keeps the memory that
    it shared with the parent: after a kill -9 the resumed run would find the machine half full.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
