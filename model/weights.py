"""Weights on disk: safetensors, written atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.configs.files import sync_folder


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors by name, dtypes kept. The file is there whole or not at all, even after kill -9.

    Tied, overlapping and non-contiguous tensors are each written in full: safetensors refuses shared
    memory. Raises OSError (no space, not writable) naming the file, and leaves no partial file.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(_separate(state), str(aside))
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except SafetensorError as error:
        raise OSError(f"{path}: the weights cannot be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_weights(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ConfigError when it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no weights at {path}")
    try:
        return load_file(str(path), device=str(device))
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a whole safetensors file: {error}") from error


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor on the CPU, contiguous, alone in its memory."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result
