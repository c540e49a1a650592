"""A Perceiver resampler after a gated MLP, as in Idefics2 (arXiv 2405.02246).

transformers' own Idefics2MLP and Idefics2PerceiverResampler, under the names that they have in its
Idefics2Connector (models/idefics2/modeling_idefics2.py), so that weights load by name. Its latents start at
one, all alike; ours start at N(0, 0.02). Tokens leave through an RMSNorm, so each has a mean square of one.

Shape legend: P tiles, K patches, D encoder width, N tokens (latents), H LLM width.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from prismcap.configs.schema.base import Section
from prismcap.model.connector._heads import check_divides
from prismcap.model.contracts import Connector
from prismcap.model.hf.connectors_prismcap import START_STD, Resampler


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


class ResamplerConnector(Resampler, Connector):
    """N = latents, for any K."""

    takes_class_tokens = True

    def __init__(self, vision_hidden_size: int, llm_hidden_size: int, options: Options) -> None:
        super().__init__(
            vision_hidden_size,
            options.intermediate or 4 * llm_hidden_size,
            perceiver={
                "hidden_size": llm_hidden_size,
                "resampler_n_latents": options.latents,
                "resampler_depth": options.depth,
                "resampler_n_heads": options.heads,
                "resampler_head_dim": options.head_size,
                "num_key_value_heads": options.kv_heads,
            },
        )
        self.num_tokens = options.latents
        with torch.no_grad():
            self.perceiver_resampler.latents.normal_(std=START_STD)


def build(
    options: Options,
    vision_hidden_size: int,
    grid: tuple[int, int],  # noqa: ARG001
    llm_hidden_size: int,
) -> ResamplerConnector:
    return ResamplerConnector(vision_hidden_size, llm_hidden_size, options)
