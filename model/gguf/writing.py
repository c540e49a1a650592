"""One GGUF file, written through the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.model.hf.export import Precision

REMEDY = "export with --format llava, and convert its LLM with llama.cpp's own convert_hf_to_gguf.py"
FILE_TYPES = {"fp32": gguf.LlamaFileType.ALL_F32, "bf16": gguf.LlamaFileType.MOSTLY_BF16}


def start(path: Path, architecture: str, kind: str, name: str, precision: Precision) -> Any:
    """A GGUFWriter with what every file says of itself. kind: `model` or `mmproj`."""
    writer: Any = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_name(name)
    writer.add_file_type(int(FILE_TYPES[precision]))
    return writer


def add_tensors(
    writer: Any, tensors: Mapping[str, Tensor], precision: Precision, exact: frozenset[str] = frozenset()
) -> None:
    """bf16: matrices are rounded, all else stays fp32, and so do the names in `exact`."""
    for name, value in tensors.items():
        array = value.detach().cpu().float().numpy()
        if precision == "bf16" and array.ndim == 2 and name not in exact:
            rounded = gguf.quants.quantize(array, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(name, rounded, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, array)


def finish(writer: Any) -> None:
    """Write the file and close it. Raises OSError."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def named(name_map: Any, name: str) -> str:
    """What GGUF calls a weight of transformers. Raises ConfigError for one that it does not know."""
    found: str | None = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ConfigError(f"--format gguf: the weight {name} has no name in GGUF")
    return found
