"""The weight files of a Hugging Face directory, read one after the other; nothing in them is ever run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prismcap.configs.errors import ConfigError

# the safe form first
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """Raises ConfigError when the file is missing or holds something else than a mapping."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{path}: no such file: is this the directory of a model?") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def weight_files(folder: Path, singles: Sequence[str] = SINGLE_FILES) -> list[Path]:
    """The one file, or all shards that its index names. `singles`: names of the one file, the first found
    wins. Raises ConfigError when there are none, or some are missing."""
    for single in singles:
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if not index.is_file():
            continue
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        wrong = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if wrong or not names:
            found = ", ".join(wrong) or "none named"
            raise ConfigError(f"{index}: not all of its files lie beside it: {found}")
        return [folder / name for name in names]
    raise ConfigError(f"{folder}: no weights: expected {' or '.join(singles)}, or one's index.json")


def read_tensors(path: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Tensors by name, as they are in the file; only those that are `wanted`, which is asked of every name.

    What is not wanted is not read, but for the oldest kind of pickle. Raises ConfigError for damage, and for
    pickles that hold more than tensors.
    """
    wanted = wanted or (lambda name: True)  # noqa: ARG005
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
        except FileNotFoundError as error:
            raise ConfigError(f"no weights at {path}") from error
        except SafetensorError as error:
            raise ConfigError(f"{path} is not a whole safetensors file: {error}") from error
    values = read_pickle(path)
    check_tensors(values, path)
    return {name: value for name, value in values.items() if wanted(name)}


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled mapping of tensors, numbers, texts and lists of these, by torch's restricted reader.

    Tensors are mapped from the file, and take memory when they are read. Raises ConfigError for anything
    else, such as classes or code, of which nothing is run.
    """
    try:
        mapped = zipfile.is_zipfile(path)  # all but the oldest kind
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise ConfigError(f"no weights at {path}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: not a file of tensors alone: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of tensors, found {type(values).__name__}")
    return values


def check_tensors(values: dict[str, Any], where: Path | str) -> None:
    """Raises ConfigError naming what is no tensor."""
    others = [str(name) for name, value in values.items() if not isinstance(value, Tensor)]
    if others:
        raise ConfigError(f"{where}: these are no tensors: {', '.join(others[:5])}")
