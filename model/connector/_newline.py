"""The token that ends each row of an anyres picture.

Shape legend: Q tokens of all tiles, H LLM width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Newline(nn.Module):
    """A learned embedding of the LLM's width: the row-end token of LLaVA-1.5-HD (arXiv 2310.03744, section
    3.4), `image_newline` of LLaVA-NeXT. It starts as there, at N(0, 1 / H).

    A module of its own, so that an engine that shards weights finds them read in their module's call.
    """

    def __init__(self, llm_hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(llm_hidden_size) * llm_hidden_size**-0.5)

    def forward(self, tokens_QH: Tensor) -> Tensor:
        """[Q + 1, H]: the tokens, and the newline after them."""
        return torch.cat([tokens_QH, self.weight.to(tokens_QH.dtype)[None]])
