"""mPLUG-Owl's visual abstractor (arXiv 2304.14178; equations and sizes: its released code, v1).

Learned queries attend to themselves and to the picture in every layer; a learned end token closes the
picture: 65 tokens, however many patches. Two things are the released code's own, and are kept by
`original: true`: the residual stream goes on from the normalised queries, and the MLP has a LayerNorm within.
`original: false` is the plain pre-norm layer. Queries start at N(0, 0.02): zeros, as released, make them
all alike.

Shape legend: P tiles, K patches, D encoder width, Q queries, E abstractor width, N tokens = Q + 1,
H LLM width.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from prismcap.configs.schema.base import Section
from prismcap.model.connector._heads import check_divides
from prismcap.model.contracts import Connector
from prismcap.model.hf.connectors_prismcap import Abstractor


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


class AbstractorConnector(Abstractor, Connector):
    """N = num_queries + 1, for any K."""

    takes_class_tokens = True

    def __init__(self, vision_hidden_size: int, llm_hidden_size: int, options: Options) -> None:
        super().__init__(
            vision_hidden_size,
            llm_hidden_size,
            options.num_queries,
            options.layers,
            layer={
                "width": options.hidden,
                "heads": options.heads,
                "inner": options.intermediate,
                "original": options.original,
            },
        )
        self.num_tokens = options.num_queries + 1


def build(
    options: Options,
    vision_hidden_size: int,
    grid: tuple[int, int],  # noqa: ARG001
    llm_hidden_size: int,
) -> AbstractorConnector:
    return AbstractorConnector(vision_hidden_size, llm_hidden_size, options)
