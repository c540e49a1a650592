"""Which software made a figure: read from package metadata, so nothing heavy is imported."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("prismcap", "torch", "transformers", "timm", "peft", "deepspeed", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Name -> version of Python, the machine, each installed package, and the commit where there is one."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = git_commit(Path(__file__).resolve())
    if commit is not None:
        found["git commit"] = commit
    return found


def git_commit(file: Path) -> str | None:
    """The commit of the checkout that tracks `file`, '+' added when it has changes; None outside one.

    Asking whether the file is tracked keeps an installed copy inside someone's own repository from
    reporting that repository's commit.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
