"""What a vision encoder, a connector and a language model must be, to be put together.

Shape legend: P tiles, S tile side in pixels, K patches, D encoder width, N tokens, H LLM width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prismcap.data.schema import ImageSpec


class VisionEncoder(nn.Module, ABC):
    """Tiles to patch features. `grid` is (rows, columns) of patches; K = rows * columns."""

    image_spec: ImageSpec
    hidden_size: int
    grid: tuple[int, int]

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @abstractmethod
    def forward(self, tiles_P3SS: Tensor) -> Tensor:
        """features_PKD, patches in row-major order."""

    def unused_parameters(self) -> frozenset[str]:
        """Names of own parameters that forward never reads (layers above the chosen one, heads)."""
        return frozenset()

    def set_gradient_checkpointing(self, enabled: bool) -> None:  # noqa: ARG002
        """Recompute layers in the backward pass, where the encoder can; else nothing changes."""
        return


class Connector(nn.Module, ABC):
    """Patch features to LLM positions. `num_tokens` is N, the positions a tile takes."""

    num_tokens: int

    @abstractmethod
    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""


@dataclass
class LanguageModel:
    """A causal LM of transformers and its tokenizer (None only for a random model without text)."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
