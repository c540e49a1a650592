"""CLIP's ViT (arXiv 2103.00020) as in transformers: token 0 is the class token.

mPLUG-Owl's features (arXiv 2304.14178) are `layer: -1, post_layernorm: true, class_token: keep`.
"""

from __future__ import annotations

from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from prismcap.model.vision._huggingface import Architecture, ClassTokenOptions, TowerEncoder, build_tower


class Options(ClassTokenOptions):
    """See TowerOptions."""


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    clip = Architecture(
        model_class=CLIPVisionModel,
        checkpoints=("clip_vision_model", "clip"),
        mean=tuple(OPENAI_CLIP_MEAN),
        std=tuple(OPENAI_CLIP_STD),
        num_class_tokens=1,
    )
    return build_tower(options, clip)
