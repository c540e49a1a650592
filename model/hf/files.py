"""Writing an export: weights in shards, and the folder as a whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.configs.files import sync_folder

MARKER = "prismcap.json"  # every export holds it: what is safe to replace, and what to caption with


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented UTF-8 JSON with a last newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_marker(folder: Path) -> dict[str, Any]:
    """What the export says of itself: format, prompt, template. Raises ConfigError if it is no export."""
    path = folder / MARKER
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{folder}: not an export of prismcap (it has no {MARKER})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def write_weights(state: Mapping[str, Tensor], folder: Path, max_shard_size: str = "5GB") -> None:
    """model.safetensors, or numbered shards with their index when it is larger than one. Raises OSError."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plan = split_torch_state_dict_into_shards(
        dict(state), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for name, keys in plan.filename_to_tensors.items():
        shard = {key: state[key].detach().cpu().contiguous() for key in keys}
        try:
            save_file(shard, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / name}: the weights cannot be written: {error}") from error
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


@contextlib.contextmanager
def whole_folder(destination: Path, marker: str = MARKER) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place when the block ends without error.

    An older folder with `marker` in it is replaced; anything else at `destination` is never touched.
    Raises ConfigError when `destination` holds something else.
    """
    check_replaceable(destination, marker)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private
        for path in (*partial.rglob("*"), partial):
            sync_folder(path)
        _replace(partial, destination)
        sync_folder(destination.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(destination: Path, marker: str = MARKER) -> None:
    """Raises ConfigError when `destination` is there, is not empty and has no file `marker`."""
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ConfigError(f"{destination}: a file is in the way of the export; name another folder")
    if any(destination.iterdir()) and not (destination / marker).is_file():
        raise ConfigError(
            f"{destination}: holds files and is no export (no {marker}); left alone, name another folder"
        )


def _replace(partial: Path, destination: Path) -> None:
    if not destination.exists():
        partial.rename(destination)
        return
    # a rename cannot replace a full folder, so the old one steps aside first
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old-", dir=destination.parent))
    aside = old / "model"
    try:
        destination.rename(aside)
        partial.rename(destination)
    except OSError as error:
        _put_back(aside, destination, error)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _put_back(aside: Path, destination: Path, error: OSError) -> None:
    """Raises OSError that says where the older export lies, if it cannot be put back."""
    if not aside.exists():
        return
    try:
        aside.rename(destination)
    except OSError:
        raise OSError(f"{destination}: {error}; the older one is kept in {aside}") from error
