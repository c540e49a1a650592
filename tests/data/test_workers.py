"""A data worker does not outlive a parent that was killed, even while it waits to hand on a batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import sys, time
import numpy as np
from torch.utils.data import DataLoader, Dataset
from prismcap.data.workers import die_with_parent


class Large(Dataset):
    def __len__(self): return 50

    def __getitem__(self, index):
        import os
        if index == 0:
            open(sys.argv[1], "w").write(str(os.getpid()))
        return np.zeros(4_000_000, dtype=np.uint8)


def same(item): return item


init = die_with_parent if sys.argv[2] == "with" else None
loader = DataLoader(Large(), batch_size=None, num_workers=1, worker_init_fn=init, collate_fn=same)
steps = iter(loader)
next(steps)
print("ready", flush=True)
time.sleep(600)
"""


def worker_after_kill(folder: Path, how: str) -> bool:
    """Whether the worker still runs seconds after its parent was killed."""
    script, note = folder / "parent.py", folder / "worker"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(note), how], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    worker = int(note.read_text())
    parent.kill()
    parent.wait()
    for _ in range(80):
        time.sleep(0.1)
        try:
            state = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
    os.kill(worker, signal.SIGKILL)
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")
def test_a_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    assert not worker_after_kill(tmp_path, "with")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")
def test_without_it_the_worker_stays(tmp_path: Path) -> None:
    """Why it is there: should torch ever mend this, the call can go."""
    assert worker_after_kill(tmp_path, "without")
