"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def replace_text(path: Path, text: str) -> None:
    """Put `text` at `path` at once: a crash leaves the old file or the new one. Raises OSError."""
    replace_file(path, lambda file: file.write(text.encode()))
    sync_folder(path.parent)


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Put at `path` at once what `write` writes. Any number of processes may do so: one of them is the last.

    Raises OSError, and then leaves the old file and nothing beside it.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
