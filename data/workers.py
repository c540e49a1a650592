"""Reading ahead in worker processes, the same way everywhere."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

PR_SET_PDEATHSIG = 1  # linux/prctl.h


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


def read_ahead(dataset: Dataset[Any], num_workers: int, **options: Any) -> DataLoader[Any]:
    """A DataLoader that hands items on as they are, whose workers die with this process, and which leaves
    the global random generator alone (else dropout would differ after a resume)."""
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=die_with_parent,
        generator=torch.Generator(),
        **options,
    )


def _as_is(item: Any) -> Any:
    return item
