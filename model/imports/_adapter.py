"""A LoRA adapter of peft's on disk, merged into the LLM that it was trained on, a shard at a time.

Shape legend: O rows of a weight, I its columns, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from prismcap.configs.errors import ConfigError
from prismcap.model.convert.checkpoint import read_json, read_tensors, weight_files
from prismcap.model.huggingface import local_or_hub, refuse_unconverted
from prismcap.model.imports._directories import copy_tokenizer, llm_config, llm_of, read_config
from prismcap.model.imports._parts import LLM, Parts

FILES = ("adapter_model.safetensors", "adapter_model.bin")
KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")
# keys that change what an adapter means, and their values that do not
NEUTRAL = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
# how the halves were started: with these, the weights beside them stayed the base's own
INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# what the weight of a layer of theirs becomes in the LLM: its name there, and the rows that it takes
Rename = Callable[[str, Tensor], Mapping[str, Tensor]]


def same_name(name: str, value: Tensor) -> Mapping[str, Tensor]:
    """A Rename for an adapter of the LLM as it is."""
    return {name: value}


class Adapter:
    """What is added to each weight: scale * B A. Raises ConfigError for what is no plain LoRA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        where = folder / "adapter_config.json"
        config = read_json(where)
        if config.get("peft_type") != "LORA":
            raise ConfigError(f"{where}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
        for key, neutral in NEUTRAL.items():
            if config.get(key, neutral) not in (neutral, None, [], {}):
                raise ConfigError(f"{where}: {key}: {config[key]!r} is not supported, only {neutral!r}")
        if config.get("init_lora_weights", True) not in INITS:
            raise ConfigError(
                f"{where}: init_lora_weights: {config['init_lora_weights']!r} may have changed the LLM's own "
                f"weights before training, and they are not here; only {INITS} are supported"
            )
        rank = int(_positive(config, "r", where, int))
        alpha = _positive(config, "lora_alpha", where, int | float)
        self.scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        self.halves = self._read(rank)

    def _read(self, rank: int) -> dict[str, dict[str, Tensor]]:
        """{layer: {"A": [R, I], "B": [O, R]}}."""
        halves: dict[str, dict[str, Tensor]] = {}
        unknown: list[str] = []
        for file in weight_files(self.folder, FILES):
            for name, value in read_tensors(file).items():
                match = KEY.fullmatch(name)
                if match is None:
                    unknown.append(name)
                else:
                    halves.setdefault(match["layer"], {})[match["half"]] = value
        single = [layer for layer, found in halves.items() if len(found) < 2]
        if unknown or single or not halves:
            raise ConfigError(
                f"{self.folder}: not an adapter of linear layers: {len(unknown)} unknown "
                f"{sorted(unknown)[:3]}, {len(single)} with one of lora_A and lora_B {sorted(single)[:3]}"
            )
        for layer, found in halves.items():
            if found["A"].shape[0] != rank or found["B"].shape[1] != rank:
                raise ConfigError(f"{self.folder}: {layer}: not of the rank {rank} in adapter_config.json")
        return halves

    def delta(self, layer: str) -> Tensor:
        """[O, I] in fp32."""
        found = self.halves[layer]
        delta_OI: Tensor = self.scale * (found["B"].float() @ found["A"].float())
        return delta_OI

    def targets(self, rename: Rename) -> dict[str, str]:
        """{a weight of the LLM: the layer whose delta it gets}. Raises ConfigError for a layer that the LLM
        does not have under any name."""
        targets: dict[str, str] = {}
        for layer, found in self.halves.items():
            shape = (found["B"].shape[0], found["A"].shape[1])
            names = rename(f"{layer}.weight", torch.empty(shape, device="meta"))
            if not names:
                raise ConfigError(f"{self.folder}: {layer}: no layer of the LLM is called so")
            targets |= dict.fromkeys(names, layer)
        return targets


def _positive(config: Mapping[str, Any], key: str, where: Path, kind: Any) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
        raise ConfigError(f"{where}: {key} is {value!r}, expected a {'whole ' * (kind is int)}number above 0")
    return float(value)


def merge(adapter: Adapter, llm: str, parts: Parts, rename: Rename = same_name) -> None:
    """Write `llm` with the adapter merged as the directory `llm` of `parts`, and finish them.

    Its dtype is kept; sums are made in fp32. Raises ConfigError when `llm` is no directory, is InternLM2 in
    its own layout, or lacks a layer.
    """
    base = Path(local_or_hub(llm))
    if not base.is_dir():
        raise ConfigError(f"llm={llm}: merging an adapter needs the directory of the LLM")
    refuse_unconverted(llm, None)
    targets = adapter.targets(rename)
    merged: set[str] = set()

    def with_delta(part: str, name: str, value: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG001
        if name not in targets:
            return {name: value}
        layer = targets[name]
        delta = rename(f"{layer}.weight", adapter.delta(layer))[name]
        if delta.shape != value.shape:
            raise ConfigError(
                f"{adapter.folder}: {layer}: adds {list(delta.shape)} to {name}, which is "
                f"{list(value.shape)} in {base}"
            )
        merged.add(name)
        return {name: (value.float() + delta).to(value.dtype)}

    parts.read(weight_files(base), lambda name: (LLM, name), with_delta)
    absent = sorted(targets.keys() - merged)
    if absent:
        raise ConfigError(f"{adapter.folder}: {len(absent)} weights that {base} does not have: {absent[:3]}")
    model = llm_of(read_config(AutoConfig, base, trust_remote_code=False))
    parts.finish({LLM: model})
    parts.write_config(LLM, llm_config(model))
    copy_tokenizer(base, parts.folder / LLM)
