"""What a step frees serves the next one, and is not faulted in anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TIMES, PAGES = 10, 12_500
PROGRAM = f"""
import resource
import torch
from prismcap.train.allocator import keep_freed_memory

{{prepare}}
torch.set_num_threads(1)
for _ in range(4 * {TIMES}):  # at first small objects come to lie behind the large one, and keep its room
    torch.ones({PAGES} * resource.getpagesize() // 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    torch.ones({PAGES} * resource.getpagesize() // 4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(prepare: str) -> int:
    program = PROGRAM.replace("{prepare}", prepare)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library")
def test_freed_memory_is_used_again_without_faults() -> None:
    assert faults("keep_freed_memory()") < TIMES / 2 * PAGES
    assert faults("") > (TIMES - 1) * PAGES  # each time anew: or the line above shows nothing
