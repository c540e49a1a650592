"""What connectors are made of, in training and in exports alike: so an export is the trained module itself.

This file is copied into exports, which load without prismcap: it imports torch and transformers only.

Shape legend: P tiles, K features, D encoder width, E width within a connector, Q queries, N tokens, H LLM
width, A heads, F head width.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2MLP, Idefics2PerceiverResampler

START_STD = 0.02  # of learned queries: the initializer_range of BERT, BLIP-2 and mPLUG-Owl
INNER_NORM_EPS = 1e-6  # layer_norm_eps of mPLUG-Owl; its other norms are left at torch's 1e-5


def mlp(widths: list[int], bias: bool = True) -> nn.Sequential:
    """Linear layers between the widths, GELU between the layers; linear ones at 0, 2, 4, …"""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        if layers:
            layers.append(nn.GELU())
        layers.append(nn.Linear(width_in, width_out, bias=bias))
    return nn.Sequential(*layers)


def blocks_of(features_PKD: Tensor, grid: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """[P, N, patches of a block, D]; both in row-major order."""
    (rows, columns), (high, wide) = grid, block
    tiles, _, width = features_PKD.shape
    split = features_PKD.reshape(tiles, rows // high, high, columns // wide, wide, width)
    return split.transpose(2, 3).reshape(tiles, -1, high * wide, width)


class QFormer(nn.Module):
    """BLIP-2's Q-Former and an MLP. Norm and Q-Former compute in the dtype of their weights."""

    def __init__(
        self, qformer: dict[str, Any], num_queries: int, projection: list[int], layer_norm: bool
    ) -> None:
        """qformer: of Blip2QFormerConfig. projection: widths from the Q-Former's to the LLM's."""
        super().__init__()
        config = Blip2QFormerConfig(**qformer)
        self.norm = nn.LayerNorm(config.encoder_hidden_size) if layer_norm else nn.Identity()
        self.queries = nn.Parameter(torch.randn(1, num_queries, config.hidden_size) * START_STD)
        self.qformer = Blip2QFormerModel(config)
        layers = mlp(projection)
        self.projection: nn.Module = layers[0] if len(layers) == 1 else layers

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        tokens_PNH: Tensor = self.projection(self.query(features_PKD))
        return tokens_PNH

    def query(self, features_PKD: Tensor) -> Tensor:
        """What the queries found: [P, N, E] in the dtype of the weights."""
        device = features_PKD.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            found_PNE: Tensor = self.qformer(
                query_embeds=self.queries.expand(len(features_PKD), -1, -1),
                encoder_hidden_states=self.norm(features_PKD.to(self.queries.dtype)),
            ).last_hidden_state
        return found_PNE


class Resampler(nn.Module):
    """Idefics2's gated MLP and Perceiver resampler."""

    def __init__(self, vision_width: int, intermediate: int, perceiver: dict[str, Any]) -> None:
        """intermediate: width within the MLP. perceiver: of Idefics2PerceiverConfig."""
        super().__init__()
        config = Idefics2PerceiverConfig(**perceiver)
        self.modality_projection = Idefics2MLP(
            hidden_size=vision_width,
            intermediate_size=intermediate,
            output_size=config.hidden_size,
            hidden_act="silu",
        )
        self.perceiver_resampler = Idefics2PerceiverResampler(config)

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        context_PKH = self.modality_projection(features_PKD)
        everything_PK = context_PKH.new_ones(context_PKH.shape[:2], dtype=torch.bool)
        tokens_PNH: Tensor = self.perceiver_resampler(context_PKH, attention_mask=everything_PK)
        return tokens_PNH


class AbstractorLayer(nn.Module):
    """Attention of the queries to themselves and the picture, then a gated MLP."""

    def __init__(self, width: int, heads: int, inner: int, original: bool) -> None:
        super().__init__()
        self.heads, self.original = heads, original
        self.norm1 = nn.LayerNorm(width)
        self.normk = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.w1 = nn.Linear(width, inner)
        self.w3 = nn.Linear(width, inner)
        self.inner_norm = nn.LayerNorm(inner, eps=INNER_NORM_EPS) if original else nn.Identity()
        self.w2 = nn.Linear(inner, width)

    def forward(self, queries_PQE: Tensor, features_PKE: Tensor) -> Tensor:
        """[P, Q, E]."""
        normed_PQE = self.norm1(queries_PQE)
        context = torch.cat([normed_PQE, self.normk(features_PKE)], dim=1)
        residual_PQE = normed_PQE if self.original else queries_PQE
        queries_PQE = residual_PQE + self._attend(normed_PQE, context)
        normed_PQE = self.norm2(queries_PQE)
        gated = F.silu(self.w1(normed_PQE)) * self.w3(normed_PQE)
        added_PQE: Tensor = self.w2(self.inner_norm(gated))
        return queries_PQE + added_PQE

    def _attend(self, normed_PQE: Tensor, context: Tensor) -> Tensor:
        """[P, Q, E]; context is [P, Q + K, E]."""
        query_PAQF = self._by_head(self.query(normed_PQE))
        key, value = self._by_head(self.key(context)), self._by_head(self.value(context))
        attended_PAQF = F.scaled_dot_product_attention(query_PAQF, key, value)
        attended_PQE: Tensor = self.out(attended_PAQF.transpose(1, 2).flatten(2))
        return attended_PQE

    def _by_head(self, values: Tensor) -> Tensor:
        """[P, length, E] to [P, A, length, F]."""
        length, width = values.shape[1:]
        return values.view(-1, length, self.heads, width // self.heads).transpose(1, 2)


class Abstractor(nn.Module):
    """mPLUG-Owl's visual abstractor: N = num_queries + 1."""

    def __init__(
        self, vision_width: int, llm_width: int, num_queries: int, depth: int, layer: dict[str, Any]
    ) -> None:
        """layer: what AbstractorLayer takes."""
        super().__init__()
        width: int = layer["width"]
        self.resize = nn.Identity() if vision_width == width else nn.Linear(vision_width, width)
        self.queries = nn.Parameter(torch.randn(1, num_queries, width) * START_STD)
        self.layers = nn.ModuleList(AbstractorLayer(**layer) for _ in range(depth))
        self.projection = nn.Linear(width, llm_width)
        self.end_token = nn.Parameter(torch.randn(1, 1, llm_width) * START_STD)

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH, the end token last."""
        features_PKE = self.resize(features_PKD)
        queries_PQE = self.queries.expand(len(features_PKD), -1, -1)
        for layer in self.layers:
            queries_PQE = layer(queries_PQE, features_PKE)
        tokens_PQH = self.projection(queries_PQE)
        end_P1H = self.end_token.to(tokens_PQH.dtype).expand(len(features_PKD), -1, -1)
        return torch.cat([tokens_PQH, end_P1H], dim=1)
