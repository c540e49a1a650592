"""The mean of k x k neighbouring patches, then an MLP: the cheapest way to fewer tokens.

Shape legend: P tiles, K patches = rows * columns, D encoder width, N tokens = K / k^2, H LLM width.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from prismcap.configs.schema.base import Section
from prismcap.model.connector._blocks import BlockConnector
from prismcap.model.hf.connectors_prismcap import mlp


class Options(Section):
    k: int = Field(default=2, ge=1, description="the mean of k x k neighbours becomes one token")
    depth: int = Field(default=2, ge=1, description="linear layers, with GELU between them")
    hidden: int | None = Field(default=None, ge=1, description="width between them; none: the LLM's")
    match_embedding_std: bool = False  # see model/build.py: scale_to_embeddings


class PoolingConnector(BlockConnector):
    """N = K / k^2."""

    def __init__(
        self, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int, options: Options
    ) -> None:
        super().__init__("pooling", grid, options.k)
        hidden = options.hidden or llm_hidden_size
        self.layers = mlp([vision_hidden_size, *[hidden] * (options.depth - 1), llm_hidden_size])

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        tokens_PNH: Tensor = self.layers(self.blocks(features_PKD).mean(dim=2))
        return tokens_PNH


def build(
    options: Options, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int
) -> PoolingConnector:
    """Raises ConfigError when the grid is not divisible by k."""
    return PoolingConnector(vision_hidden_size, grid, llm_hidden_size, options)
