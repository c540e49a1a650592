"""Neighbouring patches joined into one token, then an MLP: fewer tokens, nothing thrown away.

Shape legend: P tiles, K patches = rows * columns, D encoder width, N tokens = K / k^2, H LLM width.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.connector.mlp import mlp
from prismcap.model.contracts import Connector


class Options(Section):
    k: int = Field(default=2, ge=1, description="k x k neighbours become one token")
    depth: int = Field(default=2, ge=1, description="linear layers")
    hidden: int | None = Field(default=None, ge=1, description="width between them; none: the LLM's")
    layer_norm: bool = Field(default=True, description="LayerNorm of the joined features first")
    match_embedding_std: bool = False  # see model/build.py: scale_to_embeddings


class PatchConcatConnector(Connector):
    """Tokens are in row-major order of the coarser grid; so are the k x k patches within a token."""

    def __init__(
        self, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int, options: Options
    ) -> None:
        super().__init__()
        k = self.k = options.k
        self.grid = grid
        if grid[0] % k or grid[1] % k:
            raise ConfigError(
                f"patch_concat: the encoder's grid of {grid[0]} x {grid[1]} patches is not divisible by "
                f"k = {k}: change k, or the encoder's image_size"
            )
        self.num_tokens = (grid[0] // k) * (grid[1] // k)
        joined = k * k * vision_hidden_size
        self.norm = nn.LayerNorm(joined) if options.layer_norm else nn.Identity()
        hidden = options.hidden or llm_hidden_size
        self.layers = mlp([joined, *[hidden] * (options.depth - 1), llm_hidden_size])

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        tokens_PNH: Tensor = self.layers(self.norm(self.join(features_PKD)))
        return tokens_PNH

    def join(self, features_PKD: Tensor) -> Tensor:
        """[P, N, k * k * D]."""
        (rows, columns), k = self.grid, self.k
        tiles, _, width = features_PKD.shape
        blocks = features_PKD.view(tiles, rows // k, k, columns // k, k, width).transpose(2, 3)
        return blocks.reshape(tiles, self.num_tokens, k * k * width)


def build(
    options: Options, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int
) -> PatchConcatConnector:
    """Raises ConfigError when the grid is not divisible by k."""
    return PatchConcatConnector(vision_hidden_size, grid, llm_hidden_size, options)
