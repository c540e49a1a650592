"""A causal language model from a GGUF file, converted once to safetensors in the cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from pydantic import Field

from prismcap.configs.cache import cache_dir, resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.contracts import LanguageModel
from prismcap.model.llm import causal_lm
from prismcap.model.shapes import is_shapes_only

logger = logging.getLogger(__name__)

MAGIC = b"GGUF"


class Options(Section):
    path: str = Field(description="the .gguf file (or cache:…)")
    attn_implementation: causal_lm.AttentionImplementation = "segments"


def build(options: Options) -> LanguageModel:
    """The dequantised model in fp32 and its tokenizer. Raises ConfigError for a bad or missing file."""
    folder = converted(resolve_path(options.path))
    return causal_lm.build(
        causal_lm.Options(path=str(folder), attn_implementation=options.attn_implementation)
    )


def converted(path: Path, folder: Path | None = None) -> Path:
    """The directory that holds the file as a Hugging Face model; made when it is not there.

    By default in the cache folder, named by the file's content. It appears whole or not at all.
    """
    if not path.is_file():
        raise ConfigError(f"no GGUF file at {path}")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ConfigError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = folder or cache_dir() / "models" / f"{path.stem.lower()}-{digest}"
    if folder.is_dir():
        return folder
    if is_shapes_only():
        raise ConfigError(f"{path}: its shapes are known once it is converted: run `prismcap doctor` first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    logger.info("converting %s to safetensors in %s, once; this takes about a minute per GB", path, folder)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _convert(path, aside)
        aside.chmod(0o755)
        os.rename(aside, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _convert(path: Path, folder: Path) -> None:
    """Dequantise to fp32 and save model and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(f"{path}: transformers cannot read this GGUF file: {error}") from error
    # transformers still takes the dequantised model for a quantised one, and refuses to save it
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
