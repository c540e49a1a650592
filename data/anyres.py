"""Anyres: how a picture of any size is cut into tiles, and which of their tokens are kept.

The picture is scaled into the best of a set of grids of tiles and padded there; first comes the overview, the
whole picture squashed into one tile. The tokens of the grid's tiles are laid out as one map; rows and columns
that show padding alone go; each row that stays ends with a learned newline token (LLaVA-1.5-HD, arXiv
2310.03744, section 3.4). Every rounding is that of transformers' LlavaNextForConditionalGeneration and its
processor (models/llava_next), against which tests hold this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]  # rows, columns


def best_grid(height: int, width: int, grids: Sequence[Grid], tile_px: int) -> Grid:
    """Of tiles of tile_px: the grid that shows the most of the picture's pixels, then wastes the fewest.

    More pixels than the picture has show nothing new, so a small picture gets few tiles. Of equal grids the
    first is taken.
    """

    def fit(grid: Grid) -> tuple[int, int]:
        rows_px, columns_px = grid[0] * tile_px, grid[1] * tile_px
        scale = min(columns_px / width, rows_px / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - rows_px * columns_px

    return max(grids, key=fit)


@dataclass(frozen=True)
class Tiling:
    """A picture of height x width px, cut into an overview and rows x columns tiles in row-major order."""

    height: int
    width: int
    rows: int
    columns: int

    @property
    def num_tiles(self) -> int:
        """The overview included."""
        return 1 + self.rows * self.columns

    def kept(self, tile_tokens: Grid) -> tuple[range, range]:
        """Rows and columns of the map that stay when tiles have tile_tokens = (rows, columns) of tokens."""
        rows, columns = self.rows * tile_tokens[0], self.columns * tile_tokens[1]
        if self.width / self.height > self.columns / self.rows:
            # the map's width in heights of a token, over the picture's
            scale = self.columns * tile_tokens[0] / self.width
            bar = (rows - int(round(self.height * scale, 7))) // 2
            return range(bar, rows - bar), range(columns)
        scale = self.rows * tile_tokens[1] / self.height
        bar = (columns - int(round(self.width * scale, 7))) // 2
        return range(rows), range(bar, columns - bar)

    def num_tokens(self, tile_tokens: Grid) -> int:
        """Of the overview and the map, newlines included."""
        rows, columns = self.kept(tile_tokens)
        return tile_tokens[0] * tile_tokens[1] + len(rows) * (len(columns) + 1)

    def token_order(self, tile_tokens: Grid, first: int, newline: int) -> Tensor:
        """Long [num_tokens]: which token comes where, when those of the picture's tiles are numbered through
        from `first`, and the newline is number `newline`."""
        high, wide = tile_tokens
        rows, columns = self.kept(tile_tokens)
        row = torch.arange(rows.start, rows.stop)[:, None]
        column = torch.arange(columns.start, columns.stop)[None]
        tile = 1 + (row // high) * self.columns + column // wide
        token = (tile * high + row % high) * wide + column % wide
        ends = torch.full((len(rows), 1), newline)
        lines = torch.cat([first + token, ends], dim=1)
        return torch.cat([first + torch.arange(high * wide), lines.flatten()])
