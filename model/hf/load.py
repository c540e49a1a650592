"""Loading an export, or any LLaVA of transformers, without ever running code that lies in its folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prismcap.configs.errors import ConfigError
from prismcap.model.hf.adapter import FOLDER
from prismcap.model.hf.files import MARKER, read_marker
from prismcap.model.huggingface import config_values, load_pretrained, local_or_hub

logger = logging.getLogger(__name__)

GENERIC_PROMPT = "Describe the picture."


@dataclass(frozen=True)
class Exported:
    """A model in eval mode, its processor (PIL preprocessing, as in training), and its default prompt."""

    model: Any
    processor: Any
    prompt: str
    stop: tuple[str, ...]


def load_exported(
    source: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Exported:
    """An exported folder, or any image-text-to-text model of transformers by its folder or hub name.

    Raises ConfigError when there is no model of that name, or it needs code of its own and
    trust_remote_code does not allow it.
    """
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    register()
    name = local_or_hub(str(source))
    config = _config_of(name, revision)
    has_code = "auto_map" in config and config.get("model_type") != "prismcap"
    if has_code and not trust_remote_code:
        raise ConfigError(f"{name}: model type {config.get('model_type')!r} runs code of its own; refused")
    if has_code:
        logger.warning("trust_remote_code: running code that comes with %s", name)
    # our own model type comes with code too, and has its classes here
    shared: dict[str, Any] = {"trust_remote_code": has_code, "revision": revision}
    try:
        model = load_pretrained(AutoModelForImageTextToText, name, dtype=dtype, **shared)
        processor = AutoProcessor.from_pretrained(name, **shared)
        if not has_code:
            # PIL is what our models were trained with; torchvision is off by up to one grey level
            processor.image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", **shared)
    except (ValueError, KeyError, ImportError, OSError) as error:
        raise ConfigError(f"{name}: cannot be loaded as an image-text-to-text model: {error}") from error
    if getattr(processor, "chat_template", None) is None:
        raise ConfigError(f"{name}: the model has no chat template, so there is no telling how to ask it")
    processor.tokenizer.padding_side = "left"
    marker = read_marker(Path(name)) if (Path(name) / MARKER).is_file() else {}
    if marker.get("weights") == "adapter":
        model = _with_adapter(model, Path(name) / FOLDER)
    return Exported(
        model=model.to(device).eval(),
        processor=processor,
        prompt=str(marker.get("prompt", GENERIC_PROMPT)),
        stop=tuple(str(text) for text in marker.get("stop", ())),
    )


def _with_adapter(model: Any, folder: Path) -> Any:
    """The last stage's LoRA, merged into the weights before it. Raises ConfigError when it is not there."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(f"{folder}: the export's adapter is missing; export the run again")
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def register() -> None:
    """Make transformers load model type `prismcap` with the classes of this package.

    The copies in an export are for those who have no prismcap; nothing of them is imported here.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    from prismcap.model.hf.configuration_prismcap import PrismcapConfig
    from prismcap.model.hf.modeling_prismcap import PrismcapForConditionalGeneration

    AutoConfig.register(PrismcapConfig.model_type, PrismcapConfig, exist_ok=True)
    AutoModelForImageTextToText.register(PrismcapConfig, PrismcapForConditionalGeneration, exist_ok=True)


def _config_of(name: str, revision: str | None) -> Mapping[str, Any]:
    """config.json as it is: reading it through AutoConfig could run the folder's code."""
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ConfigError(f"{name}: not a model: it has no config.json")
    return config_values(name, revision)
