"""Neighbouring patches joined into one token, then an MLP: fewer tokens, nothing thrown away.

MiniGPT-4's variant for Llama-2 (its released code) is `k: [1, 4], depth: 1, layer_norm: false`: four patches
of a row, 64 tokens of a 16 x 16 grid.

Shape legend: P tiles, K patches = rows * columns, D encoder width, N tokens, one per block, H LLM width.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from prismcap.configs.schema.base import Section
from prismcap.model.connector._blocks import BlockConnector
from prismcap.model.hf.connectors_prismcap import mlp

Side = Annotated[int, Field(ge=1)]


class Options(Section):
    k: Side | tuple[Side, Side] = Field(
        default=2, description="k x k neighbours become one token, or [rows, columns] of them"
    )
    depth: int = Field(default=2, ge=1, description="linear layers")
    hidden: int | None = Field(default=None, ge=1, description="width between them; none: the LLM's")
    layer_norm: bool = Field(default=True, description="LayerNorm of the joined features first")
    match_embedding_std: bool = False  # see model/build.py: scale_to_embeddings


class PatchConcatConnector(BlockConnector):
    """N = K / patches of a block."""

    def __init__(
        self, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int, options: Options
    ) -> None:
        super().__init__("patch_concat", grid, options.k)
        joined = self.block[0] * self.block[1] * vision_hidden_size
        self.norm = nn.LayerNorm(joined) if options.layer_norm else nn.Identity()
        hidden = options.hidden or llm_hidden_size
        self.layers = mlp([joined, *[hidden] * (options.depth - 1), llm_hidden_size])

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        tokens_PNH: Tensor = self.layers(self.norm(self.join(features_PKD)))
        return tokens_PNH

    def join(self, features_PKD: Tensor) -> Tensor:
        """[P, N, patches of a block * D]."""
        return self.blocks(features_PKD).flatten(2)


def build(
    options: Options, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int
) -> PatchConcatConnector:
    """Raises ConfigError when the grid is not divisible by k."""
    return PatchConcatConnector(vision_hidden_size, grid, llm_hidden_size, options)
