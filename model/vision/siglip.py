"""SigLIP (arXiv 2303.15343) as in transformers: no class token, every token is a patch.

SigLIP 2 (arXiv 2502.14786) at fixed resolution is the same architecture, and its checkpoints are of the model
type `siglip` too: they load here. Its NaFlex checkpoints (type `siglip2`) take pictures of any shape: they do
not.
"""

from __future__ import annotations

from pydantic import Field
from transformers import SiglipVisionModel

from prismcap.model.vision._huggingface import Architecture, TowerEncoder, TowerOptions, build_tower


class Options(TowerOptions):
    """See TowerOptions."""

    drop_first_patch: bool = Field(
        default=False,
        description="leave out the first patch; PrismCaptioner's released weights want it, new training not",
    )


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    siglip = Architecture(
        model_class=SiglipVisionModel,
        checkpoints=("siglip_vision_model", "siglip"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_class_tokens=0,
    )
    return build_tower(options, siglip)
