"""Frozen matrices in the precision that they are multiplied in, for as long as a stage trains.

Under autocast to bf16 every product of a frozen layer casts its weight anew: autocast keeps casts of weights
that train alone (`cached_cast` in torch's aten/src/ATen/autocast_mode.cpp). Cast once, results are the same
bit for bit, at half of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from prismcap.configs.schema.stage import Precision
from prismcap.model.captioner import Captioner

# layers whose weights and biases autocast casts as they are; subclasses may read them in another way
CAST = (nn.Linear, nn.Conv2d)


def hold_frozen(captioner: Captioner, precision: Precision) -> None:
    """Turn weights to bf16 that a stage in bf16 does not train. What they were is lost: the next stage makes
    its captioner anew (train/run.py), and checkpoints hold what trains alone."""
    if precision != "bf16":
        return
    for parameter in held_weights(captioner):
        parameter.data = parameter.data.to(torch.bfloat16)


def held_weights(captioner: Captioner) -> Iterator[nn.Parameter]:
    """Weights and biases of the linear layers and convolutions of groups of which nothing trains. None that
    another kind of module reads too, such as an embedding that is tied to the head."""
    for group in (captioner.vision_encoder, captioner.connector, captioner.llm):
        if any(parameter.requires_grad for parameter in group.parameters()):
            continue
        others = {
            id(parameter)
            for module in group.modules()
            if type(module) not in CAST
            for parameter in module.parameters(recurse=False)
        }
        for module in group.modules():
            if type(module) in CAST:
                yield from (own for own in module.parameters() if id(own) not in others)
