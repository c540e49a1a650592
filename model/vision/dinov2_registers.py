"""DINOv2 with registers (arXiv 2309.16588) as in transformers: class token, register tokens, patches.

Registers are never features: they are there to keep patches clean.
"""

from __future__ import annotations

from transformers import Dinov2WithRegistersModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from prismcap.model.vision._huggingface import Architecture, LastStateOptions, TowerEncoder, build_tower


class Options(LastStateOptions):
    """See TowerOptions."""


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    dinov2_registers = Architecture(
        model_class=Dinov2WithRegistersModel,
        checkpoints=("dinov2_with_registers",),
        mean=tuple(IMAGENET_DEFAULT_MEAN),
        std=tuple(IMAGENET_DEFAULT_STD),
        num_class_tokens=1,
        blocks="encoder.layer",
        norm="layernorm",
    )
    return build_tower(options, dinov2_registers)
