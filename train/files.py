"""JSON files that are on the disk when the call returns, and errors of a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

# EFBIG is what a file-size limit of the shell or the file system gives; for the user it is the same
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: OSError) -> bool:
    """Whether a write failed for lack of space. safetensors hides the number in its message."""
    return error.errno in FULL or any(f"os error {number})" in str(error) for number in FULL)


def write_json(path: Path, value: Any) -> None:
    """Write and fsync."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def megabytes(num_bytes: float) -> str:
    """For messages."""
    return f"{num_bytes / 1e6:,.1f} MB"
