"""A stage's LoRA as a folder of peft beside an export whose LLM is the one before the stage.

A stage's `final/weights.safetensors` holds the adapters as they were trained; they are merged each time a run
is loaded. So nothing has to be kept for this while training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.stage import Group, GroupConfig, LoraConfig
from prismcap.model.captioner import Captioner
from prismcap.model.lora import ADAPTER, detach_lora
from prismcap.model.trainable import finish_stage

FOLDER = "adapter"
# where the LLM's layers and its head stand in the model that an export loads as
LLM_NAMES = {
    "llava": {"llm.model.": "model.language_model.", "llm.lm_head": "lm_head"},
    "llava_next": {"llm.model.": "model.language_model.", "llm.lm_head": "lm_head"},
    "blip2": {"llm.": "language_model."},
    "custom": {"llm.": "llm."},
}


@dataclass(frozen=True)
class Adapter:
    """config: of the stage. state: its weights, by their names in the captioner."""

    config: LoraConfig
    state: Mapping[str, Tensor]


def take_adapter(captioner: Captioner, train: Mapping[Group, GroupConfig]) -> Adapter:
    """Take the LoRA of the stage that has just been loaded out of the captioner, and finish the stage.

    Raises ConfigError when the stage has no LoRA, has it in another group than the LLM, or on 4 bits.
    """
    lora = {group: config.lora for group, config in train.items() if config.lora is not None}
    if set(lora) != {"llm"}:
        found = ", ".join(sorted(lora)) or "no group"
        raise ConfigError(f"--adapter keeps the LLM's LoRA of the last stage; there, {found} has one")
    state = detach_lora(captioner)
    finish_stage(captioner)
    return Adapter(lora["llm"], state)


def write_adapter(folder: Path, adapter: Adapter, layout: str) -> None:
    """adapter_config.json and adapter_model.safetensors. Raises OSError."""
    from peft import LoraConfig as PeftLoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder.mkdir()
    state = {_name(name, layout): value for name, value in adapter.state.items()}
    config: Any = PeftLoraConfig(
        r=adapter.config.rank,
        lora_alpha=adapter.config.alpha,
        lora_dropout=adapter.config.dropout,
        target_modules=sorted({name.partition(".lora_")[0] for name in state}),
        use_dora=adapter.config.dora,
        bias="none",
        inference_mode=True,
    )
    config.save_pretrained(folder)
    weights = {f"base_model.model.{name}": value.cpu().contiguous() for name, value in state.items()}
    path = folder / "adapter_model.safetensors"
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: the adapter cannot be written: {error}") from error


def _name(name: str, layout: str) -> str:
    """`llm.….lora_A.default.weight` as peft saves it for the exported model."""
    for ours, theirs in LLM_NAMES[layout].items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    name = name.replace(f".{ADAPTER}.", ".")
    # of DoRA's lengths, peft leaves out the last part of the name
    return name.removesuffix(".weight") if ".lora_magnitude_vector." in name else name
