"""DINOv2 (arXiv 2304.07193) as in transformers: a ViT trained without text; token 0 is the class token.

The released checkpoints are of 518 px, 37 x 37 patches; `image_size: 224` makes 16 x 16 of them.
"""

from __future__ import annotations

from typing import Any

from transformers import Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from prismcap.model.vision._huggingface import Architecture, LastStateOptions, TowerEncoder, build_tower


class Options(LastStateOptions):
    """See TowerOptions."""


def architecture(model_class: Any, model_type: str) -> Architecture:
    """Of DINOv2's towers, with register tokens or without."""
    return Architecture(
        model_class=model_class,
        checkpoints=(model_type,),
        mean=tuple(IMAGENET_DEFAULT_MEAN),
        std=tuple(IMAGENET_DEFAULT_STD),
        num_class_tokens=1,
        blocks="encoder.layer",
        norm="layernorm",
    )


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    return build_tower(options, architecture(Dinov2Model, "dinov2"))
