"""CLIP's ViT (arXiv 2103.00020) as in transformers: token 0 is the class token, and is dropped."""

from __future__ import annotations

from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from prismcap.model.vision._huggingface import TowerEncoder, TowerOptions, build_tower


class Options(TowerOptions):
    """See TowerOptions."""


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    return build_tower(
        options,
        CLIPVisionModel,
        CLIPVisionConfig,
        num_class_tokens=1,
        mean=tuple(OPENAI_CLIP_MEAN),
        std=tuple(OPENAI_CLIP_STD),
    )
