"""DINOv2 (arXiv 2304.07193) as in transformers: a ViT trained without text; token 0 is the class token.

The released checkpoints are of 518 px, 37 x 37 patches; `image_size: 224` makes 16 x 16 of them.
"""

from __future__ import annotations

from transformers import Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from prismcap.model.vision._huggingface import Architecture, LastStateOptions, TowerEncoder, build_tower


class Options(LastStateOptions):
    """See TowerOptions."""


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    dinov2 = Architecture(
        model_class=Dinov2Model,
        checkpoints=("dinov2",),
        mean=tuple(IMAGENET_DEFAULT_MEAN),
        std=tuple(IMAGENET_DEFAULT_STD),
        num_class_tokens=1,
        blocks="encoder.layer",
        norm="layernorm",
    )
    return build_tower(options, dinov2)
