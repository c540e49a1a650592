"""Where a command works and where it writes."""

from __future__ import annotations

import os
from pathlib import Path

import click


def default_device() -> str:
    """The GPU of this process of torchrun's, the first without it; the CPU where there is none."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def check_folder_of(out: Path) -> None:
    """Raises UsageError where the folder of a file to be written is not there."""
    if not out.parent.is_dir():
        raise click.UsageError(f"{out}: there is no folder {out.parent}; make it first")
