"""Models that run in this process: what device they are on, and what makes two of them the same."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from prismcap.configs.cache import cache_dir
from prismcap.configs.errors import ConfigError
from prismcap.configs.files import replace_text
from prismcap.model.huggingface import config_values, local_or_hub

READ_BY_PEOPLE = frozenset({".md", ".png", ".jpg", ".pdf"})


def local_device(device: str) -> torch.device:
    """`cuda` without a number is this process's own under torchrun (LOCAL_RANK).

    Raises ConfigError where there is no such device.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r}: {str(error).partition(chr(10))[0]}") from error
    if chosen.type != "cuda":
        return chosen
    if chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (chosen.index or 0) >= num_devices:
        raise ConfigError(
            f"device {device!r}: {chosen} is not there, this machine shows {num_devices} GPU(s). Start as "
            "many processes as there are GPUs (torchrun --nproc-per-node), or set device to cpu"
        )
    return chosen


def model_identity(path: str, revision: str | None = None) -> str:
    """A hash of a folder's files, weights included, or a hub name with its commit. Raises ConfigError."""
    name = local_or_hub(path)
    if Path(name).is_dir():
        return folder_hash(Path(name))
    return f"{name}@{config_values(name, revision).get('_commit_hash') or revision}"


def folder_hash(folder: Path) -> str:
    """Of the names and bytes of a model's files, but those that only people read; 16 hexadecimal digits.

    What was read (about a second per GB) is remembered in the cache folder: a file of the same size and time
    of change is not read again. Raises ConfigError when the folder cannot be read.
    """
    folder = folder.resolve()
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    memory = cache_dir() / "hashes" / f"{place}.json"
    known = _remembered(memory)
    found: dict[str, list[str]] = {}
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.suffix in READ_BY_PEOPLE or not path.is_file():
                continue
            if any(part.startswith(".") for part in name.parts):
                continue
            state = path.stat()
            stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
            before = known.get(str(name))
            found[str(name)] = before if before and before[0] == stamp else [stamp, _file_hash(path)]
    except OSError as error:
        raise ConfigError(f"{folder}: the model's files cannot be read: {error}") from error
    if found != known:
        _remember(memory, found)
    named = "".join(f"{name}\0{digest}\n" for name, (_, digest) in sorted(found.items()))
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(memory: Path) -> dict[str, list[str]]:
    """File name -> (size, time of change and inode; hash); empty where nothing readable is kept."""
    try:
        values = json.loads(memory.read_text(encoding="utf-8"))
        return {str(name): [str(stamp), str(digest)] for name, (stamp, digest) in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(memory: Path, found: dict[str, list[str]]) -> None:
    """Where the cache folder cannot be written the files are read again next time."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        replace_text(memory, json.dumps(found, indent=1))
    except OSError:
        return
