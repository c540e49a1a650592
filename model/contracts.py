"""What a vision encoder, a connector and a language model must be, to be put together.

Shape legend: P tiles, S tile side in pixels, K features of a tile, D encoder width, N tokens, H LLM width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prismcap.data.schema import ImageSpec
from prismcap.model.connector._newline import Newline


class VisionEncoder(nn.Module, ABC):
    """Tiles to features: `num_class_tokens` kept class tokens (most encoders: none), then the patches of
    `grid` = (rows, columns). K = num_class_tokens + rows * columns."""

    image_spec: ImageSpec
    hidden_size: int
    grid: tuple[int, int]
    num_class_tokens: int = 0
    pooled_size: int | None = None  # width of `pooled`; None for an encoder that has none

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def features_per_tile(self) -> int:
        """K."""
        return self.num_class_tokens + self.num_patches

    @abstractmethod
    def forward(self, tiles_P3SS: Tensor) -> Tensor:
        """features_PKD: kept class tokens, then patches in row-major order."""

    def pooled(self, tiles_P3SS: Tensor) -> Tensor:
        """embeddings_PD, one of each whole tile, D = pooled_size. Reads all parameters of the encoder."""
        raise NotImplementedError(f"{type(self).__name__} has no pooled_size")

    def unused_parameters(self) -> frozenset[str]:
        """Names of own parameters that forward never reads (layers above the chosen one, heads)."""
        return frozenset()

    def set_gradient_checkpointing(self, enabled: bool) -> None:  # noqa: ARG002
        """Recompute layers in the backward pass, where the encoder can; else nothing changes."""
        return


class Connector(nn.Module, ABC):
    """Features to LLM positions. `num_tokens` is N, the positions a tile takes. `takes_class_tokens`: whether
    it looks at all features of a tile, and not only at those of a grid. `token_grid`: rows and columns of a
    tile's tokens where they lie in row-major order of a grid; anyres needs it. `newline`: with anyres, what
    ends the rows (model/build.py sets it)."""

    num_tokens: int
    takes_class_tokens: bool = False
    token_grid: tuple[int, int] | None = None
    newline: Newline | None

    def __init__(self) -> None:
        super().__init__()
        self.newline = None

    @abstractmethod
    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""


@dataclass
class LanguageModel:
    """A causal LM of transformers and its tokenizer (None only for a random model without text)."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
