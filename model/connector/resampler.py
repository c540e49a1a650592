"""A Perceiver resampler after a gated MLP, as in Idefics2 (arXiv 2405.02246).

transformers' own Idefics2MLP and Idefics2PerceiverResampler, under the names that they have in its
Idefics2Connector (models/idefics2/modeling_idefics2.py), so that weights load by name. Its latents start at
one, all alike; ours start at N(0, 0.02). Tokens leave through an RMSNorm, so each has a mean square of one.

Shape legend: P tiles, K patches, D encoder width, N tokens (latents), H LLM width.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2MLP, Idefics2PerceiverResampler

from prismcap.configs.schema.base import Section
from prismcap.model.connector._heads import check_divides
from prismcap.model.contracts import Connector

LATENT_STD = 0.02


class Options(Section):
    latents: int = Field(default=64, ge=1, description="tokens of a tile")
    depth: int = Field(default=3, ge=1, description="layers of the resampler")
    heads: int = Field(default=16, ge=1, description="attention heads")
    head_size: int = Field(default=96, ge=1, description="width of a head")
    kv_heads: int = Field(default=4, ge=1, description="heads of keys and values; they divide heads")
    intermediate: int | None = Field(
        default=None,
        ge=1,
        description="width within the MLP before; none: 4 times the LLM's. Idefics2-8B has its LLM's 14336",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Options:
        check_divides("resampler", ("kv_heads", self.kv_heads), ("heads", self.heads))
        return self


class ResamplerConnector(Connector):
    """N = latents, for any K."""

    takes_class_tokens = True

    def __init__(self, vision_hidden_size: int, llm_hidden_size: int, options: Options) -> None:
        super().__init__()
        self.num_tokens = options.latents
        self.modality_projection = Idefics2MLP(
            hidden_size=vision_hidden_size,
            intermediate_size=options.intermediate or 4 * llm_hidden_size,
            output_size=llm_hidden_size,
            hidden_act="silu",
        )
        self.perceiver_resampler = Idefics2PerceiverResampler(
            Idefics2PerceiverConfig(
                hidden_size=llm_hidden_size,
                resampler_n_latents=options.latents,
                resampler_depth=options.depth,
                resampler_n_heads=options.heads,
                resampler_head_dim=options.head_size,
                num_key_value_heads=options.kv_heads,
            )
        )
        with torch.no_grad():
            self.perceiver_resampler.latents.normal_(std=LATENT_STD)

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH."""
        context_PKH = self.modality_projection(features_PKD)
        everything_PK = context_PKH.new_ones(context_PKH.shape[:2], dtype=torch.bool)
        tokens_PNH: Tensor = self.perceiver_resampler(context_PKH, attention_mask=everything_PK)
        return tokens_PNH


def build(
    options: Options,
    vision_hidden_size: int,
    grid: tuple[int, int],  # noqa: ARG001
    llm_hidden_size: int,
) -> ResamplerConnector:
    return ResamplerConnector(vision_hidden_size, llm_hidden_size, options)
