"""What connectors share that make one token of a block of neighbouring patches.

Shape legend: P tiles, K patches = rows * columns, D encoder width, N tokens, one per block.
"""

from __future__ import annotations

from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.model.contracts import Connector
from prismcap.model.hf.connectors_prismcap import blocks_of


class BlockConnector(Connector):
    """Tokens are in row-major order of the coarser grid; so are the patches within a block.

    `k` is a block's side, or its (rows, columns). Raises ConfigError when blocks do not fill the grid.
    """

    def __init__(self, name: str, grid: tuple[int, int], k: int | tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.block = (k, k) if isinstance(k, int) else k
        if grid[0] % self.block[0] or grid[1] % self.block[1]:
            raise ConfigError(
                f"{name}: the encoder's grid of {grid[0]} x {grid[1]} patches is not divisible by "
                f"k = {k}: change k, or the encoder's image_size"
            )
        self.token_grid = (grid[0] // self.block[0], grid[1] // self.block[1])
        self.num_tokens = self.token_grid[0] * self.token_grid[1]

    def blocks(self, features_PKD: Tensor) -> Tensor:
        """[P, N, patches of a block, D]."""
        return blocks_of(features_PKD, self.grid, self.block)
