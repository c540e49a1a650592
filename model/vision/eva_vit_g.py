"""BLIP-2's EVA ViT-g (arXiv 2301.12597): 39 blocks, 1408 wide, 224 px, with its final norm.

`path` is a BLIP-2 checkpoint, of which only the tower is loaded, or a tower saved alone. MiniGPT-4 (arXiv
2304.10592) keeps the class token for the Q-Former, and drops it in its Llama-2 variant. A random tower wants
`initializer_range: 0.02` in `config`: by transformers' default its weights are next to zero.
"""

from __future__ import annotations

from transformers import Blip2VisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from prismcap.model.vision._huggingface import Architecture, LastStateOptions, TowerEncoder, build_tower


class Options(LastStateOptions):
    """See TowerOptions."""


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    eva_vit_g = Architecture(
        model_class=Blip2VisionModel,
        checkpoints=("blip_2_vision_model", "blip-2"),
        mean=tuple(OPENAI_CLIP_MEAN),
        std=tuple(OPENAI_CLIP_STD),
        num_class_tokens=1,
        takes_mask=False,
        renamed={r"^vision_model\.": ""},
    )
    return build_tower(options, eva_vit_g)
