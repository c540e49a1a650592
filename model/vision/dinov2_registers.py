"""DINOv2 with registers (arXiv 2309.16588) as in transformers: class token, register tokens, patches.

Registers are never features: they are there to keep patches clean.
"""

from __future__ import annotations

from transformers import Dinov2WithRegistersModel

from prismcap.model.vision import dinov2
from prismcap.model.vision._huggingface import TowerEncoder, build_tower


class Options(dinov2.Options):
    """See TowerOptions."""


def build(options: Options) -> TowerEncoder:
    """Raises ConfigError when the tower cannot be loaded."""
    return build_tower(options, dinov2.architecture(Dinov2WithRegistersModel, "dinov2_with_registers"))
