"""What trains in a stage: requires_grad by group, LoRA in and merged again, the weights that are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.stage import Group, GroupConfig, LoraConfig
from prismcap.model.captioner import Captioner

GROUPS: tuple[Group, ...] = get_args(Group)


def group_of(parameter_name: str) -> Group:
    """The group of a parameter of the captioner: the first part of its name."""
    first = parameter_name.partition(".")[0]
    for group in GROUPS:
        if group == first:
            return group
    raise ValueError(f"parameter {parameter_name!r} belongs to none of {', '.join(GROUPS)}")


def prepare_stage(captioner: Captioner, train: Mapping[Group, GroupConfig], seed: int = 0) -> None:
    """Freeze everything but the groups of the stage; give those with `lora` their adapters.

    `seed` fixes the adapters' start; the global random state is left as it was. Of a trained group,
    parameters that its forward never reads stay frozen: they would have no gradient.
    Raises ConfigError when LoRA's target modules match nothing.
    """
    if lora_modules(captioner):
        raise ValueError("the last stage's LoRA is still in place: call finish_stage before prepare_stage")
    captioner.requires_grad_(False)
    for index, group in enumerate(GROUPS):
        config = train.get(group)
        if config is None:
            continue
        module: nn.Module = getattr(captioner, group)
        if config.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + index)
                _inject_lora(module, config.lora, group)
        else:
            module.requires_grad_(True)
    if "vision_encoder" in train:
        unused = captioner.vision_encoder.unused_parameters()
        for name, parameter in captioner.vision_encoder.named_parameters():
            if name in unused:
                parameter.requires_grad_(False)
    captioner.train(captioner.training)


def trainable_parameters(captioner: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name, in the order of the module. Tied weights appear once."""
    return {name: value for name, value in captioner.named_parameters() if value.requires_grad}


def trainable_state(captioner: nn.Module) -> dict[str, Tensor]:
    """The tensors of what trains, by name, detached and not copied. Nothing else changes in a stage."""
    return {name: value.detach() for name, value in trainable_parameters(captioner).items()}


def load_trainable_state(captioner: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The reverse of trainable_state. Raises ConfigError unless names and shapes are exactly equal."""
    expected = trainable_parameters(captioner)
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise ConfigError(
            f"the weights are not those of this stage: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}. Is the config the one they were trained with?"
        )
    for name, parameter in expected.items():
        if parameter.shape != state[name].shape:
            raise ConfigError(
                f"weight {name}: shape {tuple(state[name].shape)} in the file, "
                f"{tuple(parameter.shape)} in the model"
            )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(state[name])


def finish_stage(captioner: Captioner) -> None:
    """Merge LoRA into the weights it adapts, and freeze everything: names are as before the stage."""
    for name, module in lora_modules(captioner).items():
        module.merge()
        parent_name, _, child = name.rpartition(".")
        setattr(captioner.get_submodule(parent_name), child, module.get_base_layer())
    adapted: Any
    for adapted in captioner.modules():
        # what marks a transformers model as adapted; plain again, it saves all of its weights
        if getattr(adapted, "_hf_peft_config_loaded", False):
            adapted._hf_peft_config_loaded = False
        if "peft_config" in vars(adapted):
            del adapted.peft_config
    captioner.disable_gradient_checkpointing()
    captioner.requires_grad_(False)
    captioner.train(captioner.training)


def lora_modules(captioner: nn.Module) -> dict[str, Any]:
    """The layers that LoRA has wrapped, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in captioner.named_modules() if isinstance(module, LoraLayer)}


def _inject_lora(module: nn.Module, config: LoraConfig, group: Group) -> None:
    """Wrap the target layers of one group in place; only the adapters require grad afterwards."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        bias="none",
    )
    linear = sorted(
        {name.rpartition(".")[2] for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    )
    names = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    absent = sorted(set(config.target_modules) - names)
    if absent:
        raise ConfigError(
            f"train.{group}.lora.target_modules: no layer of the {group} is called {absent}. "
            f"Linear layers there: {', '.join(linear) or 'none'}."
        )
    inject_adapter_in_model(peft_config, module)
