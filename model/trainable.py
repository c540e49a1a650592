"""What trains in a stage, group by group: the whole, a part, or adapters; and the weights that are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.stage import Group, GroupConfig, Precision, TextTowerConfig
from prismcap.model.captioner import Captioner
from prismcap.model.freeze import unfreeze
from prismcap.model.lora import inject_lora, lora_modules, lora_targets, merge_lora, output_layer
from prismcap.model.quantize import dequantize_all, quantize_linear
from prismcap.model.text_tower import build_text_tower

GROUPS: tuple[Group, ...] = get_args(Group)


def group_of(parameter_name: str) -> Group:
    """The group of a parameter of the captioner: the first part of its name."""
    first = parameter_name.partition(".")[0]
    for group in GROUPS:
        if group == first:
            return group
    raise ValueError(f"parameter {parameter_name!r} belongs to none of {', '.join(GROUPS)}")


def prepare_stage(
    captioner: Captioner, train: Mapping[Group, GroupConfig], seed: int = 0, precision: Precision = "fp32"
) -> None:
    """Freeze everything but the groups of the stage, or the parts of them that `only` names; give those with
    `lora` their adapters.

    `seed` fixes the adapters' start; the global random state is left as it was. `precision`: what a quantized
    LLM computes in. Of a trained group, parameters that its forward never reads stay frozen: they would have
    no gradient. Raises ConfigError when LoRA's target modules or a pattern match nothing, and without a GPU
    where one is needed; MissingExtraError.
    """
    if lora_modules(captioner) or captioner.text_tower is not None:
        raise ValueError(
            "the last stage's own parts are still in place: call finish_stage before prepare_stage"
        )
    captioner.requires_grad_(False)
    unread = captioner.vision_encoder.unused_parameters()
    if "text_tower" in train:
        _add_text_tower(captioner, train["text_tower"].sizes or TextTowerConfig(), seed)
        unread = frozenset()  # the pooled embedding of a picture is made of all of the encoder
    for index, group in enumerate(GROUPS):
        config = train.get(group)
        if config is None:
            continue
        where = f"train.{group}"
        module: nn.Module = getattr(captioner, group)
        own_unread = unread if group == "vision_encoder" else frozenset()
        if config.lora is None:
            unfreeze(module, config.only, own_unread, f"{where}.only")
            continue
        targets = lora_targets(module, config.lora, config.only, own_unread, where)
        if config.lora.quantize is not None:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            quantize_linear(module, output_layer(module), dtype, f"{where}.lora.quantize")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + index)
            inject_lora(module, config.lora, targets)
    captioner.train(captioner.training)


def _add_text_tower(captioner: Captioner, sizes: TextTowerConfig, seed: int) -> None:
    """The same one for the same seed, whenever its stage is prepared; finish_stage takes it away."""
    own_seed = seed + GROUPS.index("text_tower")
    captioner.text_tower = build_text_tower(
        sizes, captioner.vision_encoder, captioner.llm, captioner.tokenizer, own_seed
    )


def unquantized(train: Mapping[Group, GroupConfig]) -> dict[Group, GroupConfig]:
    """The same stage with its LLM's weights as they are: finish_stage brings them back without loss."""
    return {
        group: config.model_copy(
            update={"lora": config.lora and config.lora.model_copy(update={"quantize": None})}
        )
        for group, config in train.items()
    }


def trainable_parameters(captioner: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name, in the order of the module. Tied weights appear once."""
    return {name: value for name, value in captioner.named_parameters() if value.requires_grad}


def trainable_state(captioner: nn.Module) -> dict[str, Tensor]:
    """The tensors of what trains, by name, detached and not copied. Nothing else changes in a stage."""
    return {name: value.detach() for name, value in trainable_parameters(captioner).items()}


def load_trainable_state(captioner: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The reverse of trainable_state. Raises ConfigError unless names and shapes are exactly equal."""
    check_trainable_state(captioner, state)
    with torch.no_grad():
        for name, parameter in trainable_parameters(captioner).items():
            parameter.copy_(state[name])


def check_trainable_state(captioner: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raises ConfigError unless names and shapes are those of what trains."""
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


def finish_stage(captioner: Captioner) -> None:
    """Merge LoRA into the weights it adapts, take a text tower away, and freeze everything: names are as
    before the stage.

    Weights that were quantized stay what training computed with, in fp32.
    """
    captioner.text_tower = None
    merge_lora(captioner)
    dequantize_all(captioner.llm, captioner.device)
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
