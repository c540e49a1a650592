"""An MLP with GELU between its layers; depth 2 is LLaVA-1.5's (arXiv 2310.03744, section 3.2).

Shape legend: P tiles, K patches, D encoder width, N tokens, H LLM width.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from prismcap.configs.schema.base import Section
from prismcap.model.contracts import Connector
from prismcap.model.hf.connectors_prismcap import mlp


class Options(Section):
    depth: int = Field(default=2, ge=1, description="linear layers")
    hidden: int | None = Field(default=None, ge=1, description="width between them; none: the LLM's")
    layer_norm: bool = Field(default=False, description="LayerNorm of the features first")
    match_embedding_std: bool = False  # see model/build.py: scale_to_embeddings


class MlpConnector(Connector):
    """Every patch becomes one token: N = K."""

    def __init__(
        self, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int, options: Options
    ) -> None:
        super().__init__()
        self.token_grid = grid
        self.num_tokens = grid[0] * grid[1]
        self.norm = nn.LayerNorm(vision_hidden_size) if options.layer_norm else nn.Identity()
        hidden = options.hidden or llm_hidden_size
        self.layers = mlp([vision_hidden_size, *[hidden] * (options.depth - 1), llm_hidden_size])

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        tokens_PNH: Tensor = self.layers(self.norm(features_PKD))
        return tokens_PNH


def build(
    options: Options, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int
) -> MlpConnector:
    return MlpConnector(vision_hidden_size, grid, llm_hidden_size, options)
