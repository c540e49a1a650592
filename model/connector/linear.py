"""One linear layer, as in LLaVA (arXiv 2304.08485, section 4.1).

Shape legend: P tiles, K patches, D encoder width, N tokens, H LLM width.
"""

from __future__ import annotations

from torch import Tensor, nn

from prismcap.configs.schema.base import Section
from prismcap.model.contracts import Connector


class Options(Section):
    match_embedding_std: bool = False  # see model/build.py: scale_to_embeddings


class LinearConnector(Connector):
    """Every patch becomes one token: N = K."""

    def __init__(self, vision_hidden_size: int, grid: tuple[int, int], llm_hidden_size: int) -> None:
        super().__init__()
        self.token_grid = grid
        self.num_tokens = grid[0] * grid[1]
        self.linear = nn.Linear(vision_hidden_size, llm_hidden_size)

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        tokens_PNH: Tensor = self.linear(features_PKD)
        return tokens_PNH


def build(
    options: Options,  # noqa: ARG001
    vision_hidden_size: int,
    grid: tuple[int, int],
    llm_hidden_size: int,
) -> LinearConnector:
    return LinearConnector(vision_hidden_size, grid, llm_hidden_size)
