"""Peak memory of this process, from a moment that can be set."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # man 5 proc: resets VmHWM to what is resident now


def restart_peak() -> None:
    """Count the peak from here on. Freed memory is handed back first, where the C library can.

    Where the system does not allow it (not Linux, or /proc is read-only), the peak stays that of the
    process's whole life.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            return


def peak_mb() -> float:
    """MB (1e6 bytes) since restart_peak: of the GPU's allocator if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if _STATUS.is_file():
        # not getrusage: its peak is handed down from the process that started this one
        return _status_mb("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def current_mb() -> float:
    """MB held now, of the same kind as peak_mb (on systems without /proc, the peak itself)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 1e6
    return _status_mb("VmRSS") if _STATUS.is_file() else peak_mb()


def available_mb() -> float | None:
    """MB that a new process may take, where the system says so."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return free / 1e6
    path = Path("/proc/meminfo")
    return _field_mb(path, "MemAvailable") if path.is_file() else None


def _status_mb(name: str) -> float:
    return _field_mb(_STATUS, name)


def _field_mb(path: Path, name: str) -> float:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024 / 1e6
    raise KeyError(f"{path} has no {name}")
