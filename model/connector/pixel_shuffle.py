"""Space to depth, then one linear layer without a bias, as in Idefics3 (arXiv 2408.12637) and SmolVLM
(arXiv 2504.05299).

Equal to transformers' Idefics3Connector (models/idefics3/modeling_idefics3.py), and for any grid.

Shape legend: P tiles, K patches = rows * columns, D encoder width, N tokens = K / k^2, H LLM width.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from prismcap.configs.schema.base import Section
from prismcap.model.connector._blocks import BlockConnector


class Options(Section):
    k: int = Field(
        default=2, ge=1, description="k x k neighbours become one token; `scale_factor` of Idefics3"
    )
    match_embedding_std: bool = False  # see model/build.py: scale_to_embeddings


class PixelShuffleConnector(BlockConnector):
    """N = K / k^2."""

    def __init__(
        self, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int, options: Options
    ) -> None:
        super().__init__("pixel_shuffle", grid, options.k)
        self.projection = nn.Linear(options.k**2 * vision_hidden_size, llm_hidden_size, bias=False)

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        tokens_PNH: Tensor = self.projection(self.blocks(features_PKD).flatten(2))
        return tokens_PNH


def build(
    options: Options, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int
) -> PixelShuffleConnector:
    """Raises ConfigError when the grid is not divisible by k."""
    return PixelShuffleConnector(vision_hidden_size, grid, llm_hidden_size, options)
