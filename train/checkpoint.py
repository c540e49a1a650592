"""Checkpoints: written aside, checked, and put in place by one rename.

A checkpoint is a folder `step-000100` (or `final`) of a stage, with a manifest of the hashes of its
files. A folder of that name is whole, whenever the run was killed: what is half written has a
name that starts with a dot. The hashes guard against damage, not against malice.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from prismcap.configs.files import sync_folder
from prismcap.data.schema import DataError
from prismcap.train.distributed import Ranks
from prismcap.train.files import is_full, megabytes, write_json

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FINAL = "final"
UNFINISHED = ".unfinished-"


class DamagedError(DataError):
    """A checkpoint that is not what was written."""


class SaveError(OSError):
    """A checkpoint could not be written. Earlier ones are as they were."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds. `files`: relative path -> blake2b of its content.

    `config`: the flat keys of the config that matter for going on. `rejected`: samples left out so
    far, by reason. `stages`: the stages up to this one. `num_samples`: of the stage's mix, and
    `total_steps` of the stage. An empty `stages` or a 0 says that it was not written down.
    `num_skipped` and `recent_losses`: see skipping.SkipBudget. `best`: where the weights are the best of
    the stage, {step, figure, value}; see best.BestWeights.
    """

    stage: str
    step: int
    world_size: int
    engine: str
    config: Mapping[str, Any]
    rejected: Mapping[str, int]
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stages: Sequence[str] = ()
    num_samples: int = 0
    total_steps: int = 0
    num_skipped: int = 0
    recent_losses: Sequence[float] = ()
    best: Mapping[str, Any] | None = None


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def save_checkpoint(
    stage_dir: Path,
    name: str,
    manifest: Manifest,
    write: Callable[[Path], None],
    ranks: Ranks,
    needed_bytes: int = 0,
) -> Path:
    """Let every rank `write` into a folder aside, check it on rank 0, rename it to `name`. Collective.

    Raises SaveError, on every rank, naming the folder; the half-written folder is then gone. Where less
    than `needed_bytes` are free nothing is written: in an engine's own collectives, ranks would wait for
    the one that fails.
    """
    aside, target = stage_dir / f"{UNFINISHED}{name}", stage_dir / name
    errors = _attempt(lambda: ranks.on_first(lambda: _empty_folder(aside, needed_bytes)), ranks)
    if not errors:
        errors = _attempt(lambda: write(aside), ranks)
    if not errors:
        errors = _attempt(lambda: ranks.on_first(lambda: _publish(aside, target, manifest)), ranks)
    if errors:
        ranks.on_first(lambda: shutil.rmtree(aside, ignore_errors=True))
        raise _save_error(errors[0], target, needed_bytes)
    return target


def _attempt(action: Callable[[], Any], ranks: Ranks) -> list[OSError]:
    """Every rank's OSError, so that no rank waits for one that has given up."""
    error = None
    try:
        action()
    except OSError as caught:
        error = caught
    return [found for found in ranks.gather(error) if found is not None]


def _save_error(error: OSError, target: Path, needed_bytes: int) -> SaveError:
    if not is_full(error):
        return SaveError(f"{target}: the checkpoint cannot be written: {error}")
    free = shutil.disk_usage(target.parent).free
    return SaveError(
        f"{target}: no space left for the checkpoint: it needs about {megabytes(needed_bytes)}, "
        f"{megabytes(free)} are free. Earlier checkpoints are intact: make room (or lower "
        "checkpoint.keep) and go on with --resume auto. "
        f"({error})"
    )


def _empty_folder(folder: Path, needed_bytes: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shutil.disk_usage(folder).free < needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _publish(aside: Path, target: Path, manifest: Manifest) -> None:
    for path in _files(aside):
        # files of an engine that does not sync its own
        with path.open("rb") as file:
            os.fsync(file.fileno())
    hashes = {str(path.relative_to(aside)): file_hash(path) for path in _files(aside)}
    values = dataclasses.asdict(dataclasses.replace(manifest, files=hashes))
    write_json(aside / MANIFEST, values | {"digest": _digest(values)})
    for folder in {path.parent for path in _files(aside)} | {aside}:
        sync_folder(folder)
    _check_tensor_files(aside)
    if target.exists():  # only ever a damaged one, that the run went back behind
        shutil.rmtree(target)
    os.rename(aside, target)
    sync_folder(target.parent)


def _check_tensor_files(folder: Path) -> None:
    """A short write that no call reported shows here: the header does not fit the length."""
    for path in folder.rglob("*.safetensors"):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise OSError(f"{path.name} was not written whole: {error}") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def file_hash(path: Path) -> str:
    """blake2b of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Raises DamagedError when it is missing, torn or changed."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        digest = values.pop("digest")
        if digest != _digest(values):
            raise DamagedError(f"{path}: does not match its own digest")
        return Manifest(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path}: not a whole manifest: {error}") from error


def verify(folder: Path) -> Manifest:
    """Compare every file with the manifest. Raises DamagedError naming the first that differs."""
    manifest = read_manifest(folder)
    found = {str(path.relative_to(folder)): path for path in _files(folder)}
    for name in sorted(set(found) ^ set(manifest.files)):
        raise DamagedError(f"{folder / name}: {'not in the manifest' if name in found else 'missing'}")
    for name, path in found.items():
        if file_hash(path) != manifest.files[name]:
            raise DamagedError(f"{path}: the content is not what was written (hash differs)")
    return manifest


def step_folders(stage_dir: Path) -> list[Path]:
    """Checkpoints of a stage by step, oldest first, `final` left out."""
    found = [path for path in stage_dir.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of one of step_folders."""
    # names have six digits or more: they do not sort like their numbers
    return int(folder.name.removeprefix("step-"))


def newest(stage_dir: Path) -> tuple[Path, Manifest] | None:
    """The newest whole checkpoint of a stage; damaged ones are passed over with a warning."""
    for folder in reversed(step_folders(stage_dir)):
        try:
            return folder, verify(folder)
        except DamagedError as error:
            log.warning("%s. This checkpoint is damaged; trying the one before it.", error)
    return None


def prune(stage_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, provided that the newest is whole."""
    folders = step_folders(stage_dir)
    if len(folders) <= keep:
        return
    verify(folders[-1])
    for folder in folders[:-keep]:
        discard(folder)


def discard(folder: Path) -> None:
    """Remove a checkpoint, if it is there. A removal that is cut short leaves no half one behind."""
    if not folder.is_dir():
        return
    aside = folder.with_name(f"{UNFINISHED}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside)


def remove_unfinished(stage_dir: Path) -> None:
    """Clear what a killed run left half written."""
    for folder in stage_dir.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder)
