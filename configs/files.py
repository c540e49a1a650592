"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def replace_text(path: Path, text: str) -> None:
    """Put `text` at `path` at once, in UTF-8: a crash leaves the old file or the new one. Raises OSError.

    Half a surrogate pair (a model's text that was cut off), which UTF-8 cannot spell, becomes \\ud83d: in
    JSON the escape that is read back as it was.
    """
    # in HTML and CSV the six characters; YAML's dumper has escaped it itself. A path that is no UTF-8, which
    # Python holds as such halves, would be another one in a shell script: its cd then fails
    replace_file(path, lambda file: file.write(text.encode(errors="backslashreplace")))
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
