"""SigLIP (arXiv 2303.15343) as in transformers: no class token, every token is a patch."""

from __future__ import annotations

from transformers import SiglipVisionConfig, SiglipVisionModel

from prismcap.model.vision._huggingface import TowerEncoder, TowerOptions, build_tower


class Options(TowerOptions):
    """See TowerOptions."""


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    half = (0.5, 0.5, 0.5)
    return build_tower(
        options, SiglipVisionModel, SiglipVisionConfig, num_class_tokens=0, mean=half, std=half
    )
