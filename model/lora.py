"""Low-rank adapters of one group (peft): put around linear layers, and merged into them again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.stage import LoraConfig
from prismcap.model.freeze import matching
from prismcap.model.quantize import dequantized, is_quantized

ADAPTER = "default"  # the name that peft gives to a single one


def lora_modules(captioner: nn.Module) -> dict[str, Any]:
    """The layers that LoRA has wrapped, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in captioner.named_modules() if isinstance(module, LoraLayer)}


def inject_lora(module: nn.Module, config: LoraConfig, targets: Sequence[str]) -> None:
    """Wrap the layers of these names in place; of the module only the adapters require grad afterwards."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        # a text is a regular expression of whole names; a list would match their ends
        target_modules="|".join(map(re.escape, targets)),
        use_dora=config.dora,
        bias="none",
    )
    if config.quantize is not None:
        # what peft asks for before it looks at the class of a layer
        module.is_loaded_in_4bit = True  # type: ignore[assignment]
    try:
        inject_adapter_in_model(peft_config, module)
    finally:
        if config.quantize is not None:
            del module.is_loaded_in_4bit


def lora_targets(
    module: nn.Module, config: LoraConfig, only: Sequence[str] | None, unread: Collection[str], where: str
) -> list[str]:
    """Names of the layers that get adapters: those the config names whose weights are read and match `only`.

    `where`: the group's key. Raises ConfigError when nothing is called so, is read or matches, and for a
    weight that is tied: merged, its adapter would change the other layer too.
    """
    layers = {name: layer for name, layer in module.named_modules() if name and "weight" in layer._parameters}
    names = _named(layers, module, config, where)
    read = [name for name in names if f"{name}.weight" not in unread]
    if not read:
        raise ConfigError(f"{where}.lora.target_modules: the forward pass reads none of {names[:3]}")
    matched = matching([f"{name}.weight" for name in read], only, f"{where}.only")
    targets = [name.removesuffix(".weight") for name in matched]
    users = Counter(id(value) for _, value in module.named_parameters(remove_duplicate=False))
    for name in targets:
        if users[id(layers[name].weight)] > 1:
            raise ConfigError(
                f"{where}.lora.target_modules: {name} is tied to another layer (tie_word_embeddings), which "
                "its adapter would change as well once merged; leave it out"
            )
    return targets


def _named(layers: dict[str, nn.Module], module: nn.Module, config: LoraConfig, where: str) -> list[str]:
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    if config.target_modules == "all-linear":
        head = output_layer(module)
        return [name for name in linear if layers[name] is not head]
    ends = [f".{target}" for target in config.target_modules]
    absent = [end[1:] for end in ends if not any(f".{name}".endswith(end) for name in layers)]
    if absent or not ends:
        there = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(
            f"{where}.lora.target_modules: no layer is called {sorted(absent)}. Linear layers there: "
            f"{', '.join(there) or 'none'}; all-linear takes them all."
        )
    return [name for name in layers if f".{name}".endswith(tuple(ends))]


def output_layer(module: Any) -> nn.Module | None:
    """An LLM's head; None for what has none."""
    get = getattr(module, "get_output_embeddings", None)
    head: nn.Module | None = get() if get is not None else None
    return head


@torch.no_grad()
def merge_lora(captioner: nn.Module) -> None:
    """Put a plain layer in the place of each that is wrapped, its adapter merged into the weight."""
    for name, module in lora_modules(captioner).items():
        layer = module.get_base_layer()
        if is_quantized(layer):
            # peft would quantize the sum again: what was learned is finer than that
            layer = dequantized(layer, module.lora_A[ADAPTER].weight.device)
            layer.weight += module.get_delta_weight(ADAPTER)
        else:
            module.merge()
        captioner.set_submodule(name, layer)


def detach_lora(captioner: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by name; their layers are plain again, and hold nothing of them.

    Raises ConfigError for layers in 4 bits: their adapters belong to the rounded weights.
    """
    state: dict[str, Tensor] = {}
    for name, module in lora_modules(captioner).items():
        layer = module.get_base_layer()
        if is_quantized(layer):
            raise ConfigError(
                f"the adapter of {name} was trained on weights in 4 bits, and is right with these alone: "
                "export it merged (without --adapter)"
            )
        weights = module.state_dict(prefix=f"{name}.")
        state |= {key: value for key, value in weights.items() if not key.startswith(f"{name}.base_layer.")}
        captioner.set_submodule(name, layer)
    return state


@contextmanager
def counted_as_lora(captioner: nn.Module) -> Iterator[None]:
    """Within, DoRA runs as LoRA does: what it adds is once for each weight, and not for each position."""
    variants = [
        (module.lora_variant, dict(module.lora_variant)) for module in lora_modules(captioner).values()
    ]
    try:
        for variant, _ in variants:
            variant.clear()
        yield
    finally:
        for variant, own in variants:
            variant.update(own)
