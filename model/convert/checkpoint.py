"""The weight files of a Hugging Face directory, read one after the other; nothing in them is ever run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.model.weights import load_weights

# the safe form first
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """Raises ConfigError when the file is missing or holds something else than a mapping."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file: is this the directory of a model?") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(value).__name__}")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The one file, or all shards that its index names. Raises ConfigError when there are none, or some
    are missing."""
    for single in SINGLE_FILES:
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
    raise ConfigError(f"{folder}: no weights: expected {' or '.join(SINGLE_FILES)}, or one's index.json")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, as they are in the file. Raises ConfigError for damage, and for pickles that hold more
    than tensors."""
    if path.suffix == ".safetensors":
        return load_weights(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: not a file of tensors alone: {reason}") from error
    others = [str(name) for name, value in values.items() if not isinstance(value, Tensor)]
    if others:
        raise ConfigError(f"{path}: these are no tensors: {', '.join(others[:5])}")
    return dict(values)
