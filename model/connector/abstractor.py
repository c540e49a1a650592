"""mPLUG-Owl's visual abstractor (arXiv 2304.14178; equations and sizes: its released code, v1).

Learned queries attend to themselves and to the picture in every layer; a learned end token closes the
picture: 65 tokens, however many patches. Two things are the released code's own, and are kept by
`original: true`: the residual stream goes on from the normalised queries, and the MLP has a LayerNorm within.
`original: false` is the plain pre-norm layer. Queries start at N(0, 0.02): zeros, as released, make them
all alike.

Shape legend: P tiles, K patches, D encoder width, Q queries, E abstractor width, N tokens = Q + 1,
H LLM width, A heads, F head width.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from prismcap.configs.schema.base import Section
from prismcap.model.connector._heads import check_divides
from prismcap.model.contracts import Connector

START_STD = 0.02  # initializer_range of the released config
INNER_NORM_EPS = 1e-6  # its layer_norm_eps; its other norms are left at torch's 1e-5


class Options(Section):
    num_queries: int = Field(default=64, ge=1, description="tokens of a tile, without the end token")
    hidden: int = Field(default=1024, ge=1, description="width; features of another are projected to it")
    layers: int = Field(default=6, ge=1)
    heads: int = Field(default=16, ge=1, description="attention heads; they divide hidden")
    intermediate: int = Field(
        default=2816, ge=1, description="width within a layer's MLP; 4096 in some released checkpoints"
    )
    original: bool = Field(
        default=True, description="the released residual and inner LayerNorm; false: a plain pre-norm layer"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Options:
        check_divides("abstractor", ("heads", self.heads), ("hidden", self.hidden))
        return self


class AbstractorLayer(nn.Module):
    """Attention of the queries to themselves and the picture, then a gated MLP."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width, inner = options.hidden, options.intermediate
        self.heads, self.original = options.heads, options.original
        self.norm1 = nn.LayerNorm(width)
        self.normk = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.w1 = nn.Linear(width, inner)
        self.w3 = nn.Linear(width, inner)
        self.inner_norm = nn.LayerNorm(inner, eps=INNER_NORM_EPS) if options.original else nn.Identity()
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


class AbstractorConnector(Connector):
    """N = num_queries + 1, for any K."""

    takes_class_tokens = True

    def __init__(self, vision_hidden_size: int, llm_hidden_size: int, options: Options) -> None:
        super().__init__()
        self.num_tokens = options.num_queries + 1
        width = options.hidden
        self.resize = nn.Identity() if vision_hidden_size == width else nn.Linear(vision_hidden_size, width)
        self.queries = nn.Parameter(torch.randn(1, options.num_queries, width) * START_STD)
        self.layers = nn.ModuleList(AbstractorLayer(options) for _ in range(options.layers))
        self.projection = nn.Linear(width, llm_hidden_size)
        self.end_token = nn.Parameter(torch.randn(1, 1, llm_hidden_size) * START_STD)

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH, the end token last."""
        features_PKE = self.resize(features_PKD)
        queries_PQE = self.queries.expand(len(features_PKD), -1, -1)
        for layer in self.layers:
            queries_PQE = layer(queries_PQE, features_PKE)
        tokens_PQH = self.projection(queries_PQE)
        end_P1H = self.end_token.to(tokens_PQH.dtype).expand(len(features_PKD), -1, -1)
        return torch.cat([tokens_PQH, end_P1H], dim=1)


def build(
    options: Options,
    vision_hidden_size: int,
    grid: tuple[int, int],  # noqa: ARG001
    llm_hidden_size: int,
) -> AbstractorConnector:
    return AbstractorConnector(vision_hidden_size, llm_hidden_size, options)
