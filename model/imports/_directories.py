"""What stands beside weights in a directory that `causal_lm`, `clip` or `siglip` load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, PretrainedConfig, SiglipVisionModel

from prismcap.configs.cache import PREFIX
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.data import Geometry
from prismcap.model.convert.checkpoint import read_json
from prismcap.model.hf.files import write_json
from prismcap.model.hf.llm import DROPPED_KEYS, text_config
from prismcap.model.huggingface import local_or_hub, unreachable
from prismcap.model.imports._parts import LLM, VISION, Parts

# by the model type of config.json: the name of the component, and the class that it loads
TOWERS: dict[str, tuple[str, Any]] = {
    "clip": ("clip", CLIPVisionModel),
    "clip_vision_model": ("clip", CLIPVisionModel),
    "siglip": ("siglip", SiglipVisionModel),
    "siglip_vision_model": ("siglip", SiglipVisionModel),
}
PROCESSOR = "preprocessor_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def lasting(path: str) -> str:
    """A directory's absolute path, so that a config says the same from everywhere; the name of a model on the
    hub, or in the cache, as it is. Raises ConfigError for a directory that is none."""
    name = local_or_hub(path)
    if path.startswith(PREFIX) or not Path(name).is_dir():
        return path
    return str(Path(name).resolve())


def read_config(config_class: Any, path: Path | str, **options: Any) -> Any:
    """`config_class.from_pretrained` of a directory or hub name. Raises ConfigError naming it."""
    try:
        return config_class.from_pretrained(path, **options)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ConfigError(f"{path}: its config.json cannot be read: {error}") from error


def llm_of(config: PretrainedConfig) -> Any:
    """The causal LM of a config, without values."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def llm_config(model: Any) -> dict[str, Any]:
    """config.json of an LLM's directory."""
    return text_config(model, model.config.vocab_size)


def tower_of(config: PretrainedConfig) -> tuple[str, Any]:
    """The component that loads such a tower, and the tower without values. Raises ConfigError."""
    if config.model_type not in TOWERS:
        raise ConfigError(
            f"the vision encoder is of type {config.model_type!r}: known are {', '.join(sorted(TOWERS))}"
        )
    name, model_class = TOWERS[config.model_type]
    with torch.device("meta"):
        return name, model_class(config)


def tower_config_at(path: str) -> PretrainedConfig:
    """The tower's config of a directory or hub name. Raises ConfigError when there is none that is known."""
    name = local_or_hub(path)
    try:
        values, _ = PretrainedConfig.get_config_dict(name)
    except OSError as error:
        raise unreachable(path, error) from error
    model_type = values.get("model_type")
    if model_type not in TOWERS:
        raise ConfigError(f"{path}: holds a {model_type}, where {' or '.join(sorted(TOWERS))} is expected")
    config: PretrainedConfig = read_config(TOWERS[model_type][1].config_class, name)
    return config


def tower_config(model: Any) -> dict[str, Any]:
    """config.json of a vision tower's directory."""
    values: dict[str, Any] = model.config.to_dict()
    for key in DROPPED_KEYS:
        values.pop(key, None)
    return values | {"architectures": [type(model).__name__]}


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer's files, without pointers to code of its own. Raises ConfigError when there are none."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(names):
        raise ConfigError(
            f"{source}: no tokenizer there (tokenizer.json or tokenizer.model): put the LLM's own files "
            "beside the weights"
        )
    for name in names:
        shutil.copyfile(source / name, folder / name)
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        values = json.loads(settings.read_text(encoding="utf-8"))
        values.pop("auto_map", None)
        write_json(settings, values)


def processor_values(folder: Path) -> Mapping[str, Any]:
    """The image processor's config in a directory; empty where there is none."""
    found: Mapping[str, Any] = {}
    if (folder / PROCESSOR).is_file():
        values = read_json(folder / PROCESSOR)
        found = values.get("image_processor", values)
    elif (folder / "processor_config.json").is_file():
        # without that key it is of the text's side alone
        found = read_json(folder / "processor_config.json").get("image_processor", {})
    return found


def image_processor(folder: Path) -> Mapping[str, Any]:
    """processor_values, for a model that cannot be told to see pictures as its tower did. Raises ConfigError
    where there are none."""
    values = processor_values(folder)
    if not values:
        raise ConfigError(
            f"{folder}: nothing says how the model sees pictures (size, crop, mean): put {PROCESSOR} beside "
            "the weights"
        )
    return values


def geometry_of(processor: Mapping[str, Any]) -> Geometry:
    """How an image processor makes a picture square. A crop to what has that size already cuts nothing."""
    if processor.get("do_pad"):
        return "pad"
    size = processor.get("size", {})
    whole = isinstance(size, dict) and "shortest_edge" not in size
    return "center_crop" if processor.get("do_center_crop") and not whole else "resize"


def write_processor(processor: Mapping[str, Any], folder: Path) -> None:
    """What a tower's pixels are normalised with, where the tower's component looks for it."""
    values = {key: processor[key] for key in ("image_mean", "image_std") if key in processor}
    if values:
        write_json(folder / PROCESSOR, values)


def write_whole(parts: Parts, source: Path, llm: nn.Module, tower: nn.Module) -> Mapping[str, Any]:
    """Directories of LLM and tower from a model's own directory; what its pictures are seen with.

    Raises ConfigError for weights that are not theirs, and without a tokenizer or an image processor.
    """
    parts.finish({LLM: llm, VISION: tower})
    parts.write_config(LLM, llm_config(llm))
    parts.write_config(VISION, tower_config(tower))
    copy_tokenizer(source, parts.folder / LLM)
    processor = image_processor(source)
    write_processor(processor, parts.folder / VISION)
    return processor
