"""BLIP-2's Q-Former, then linear, as in MiniGPT-4 (arXiv 2304.10592; BLIP-2: arXiv 2301.12597).

Learned queries look at the picture in every second of BERT-base's layers: 32 tokens, however many patches.
MiniGPT-4 trains the last linear layer alone. Queries and Q-Former have BLIP-2's layout, so that its weights
load by name: `queries` is `query_tokens`, `qformer.*` that of transformers' Blip2QFormerModel. BLIP-2's
`ln_vision` is the encoder's post_layernorm; `layer_norm` is for encoders whose features come without one.

Shape legend: P tiles, K patches, D encoder width, N tokens (queries), E Q-Former width, H LLM width.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.connector._heads import check_divides
from prismcap.model.contracts import Connector
from prismcap.model.convert.checkpoint import read_tensors, weight_files
from prismcap.model.hf.connectors_prismcap import QFormer
from prismcap.model.shapes import is_shapes_only


class Options(Section):
    path: str | None = Field(
        default=None,
        description="the directory qformer/ of `prismcap import blip2`: queries and Q-Former start from it",
    )
    num_queries: int = Field(default=32, ge=1, description="tokens of a tile")
    hidden: int = Field(default=768, ge=1, description="width of the Q-Former")
    layers: int = Field(default=12, ge=1, description="layers of the Q-Former")
    heads: int = Field(default=12, ge=1, description="attention heads; they divide hidden")
    cross_attention_frequency: int = Field(
        default=2, ge=1, description="layer 0 and every so many further on look at the picture"
    )
    intermediate: int = Field(default=3072, ge=1, description="width within a layer's MLP")
    layer_norm: bool = Field(default=False, description="LayerNorm of the features first")
    projection_depth: int = Field(
        default=1,
        ge=1,
        description="linear layers to the LLM, with GELU between them; MiniGPT-4's ablation has 3 (without "
        "a word on what is between them)",
    )
    match_embedding_std: bool = False  # see model/build.py: scale_to_embeddings

    @model_validator(mode="after")
    def _heads_divide(self) -> Options:
        check_divides("qformer", ("heads", self.heads), ("hidden", self.hidden))
        return self


class QFormerConnector(QFormer, Connector):
    """N = num_queries, for any K.

    Norm and Q-Former compute in the dtype of their weights, fp32, even under autocast (bf16 where DeepSpeed's
    ZeRO has made them that); the projection follows autocast. Nothing is dropped out: MiniGPT-4 keeps its
    frozen Q-Former in eval mode.
    """

    takes_class_tokens = True

    def __init__(self, vision_hidden_size: int, llm_hidden_size: int, options: Options) -> None:
        super().__init__(
            qformer={
                "hidden_size": options.hidden,
                "num_hidden_layers": options.layers,
                "num_attention_heads": options.heads,
                "intermediate_size": options.intermediate,
                "cross_attention_frequency": options.cross_attention_frequency,
                "encoder_hidden_size": vision_hidden_size,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            num_queries=options.num_queries,
            projection=[options.hidden, *[llm_hidden_size] * options.projection_depth],
            layer_norm=options.layer_norm,
        )
        self.num_tokens = options.num_queries


def build(
    options: Options,
    vision_hidden_size: int,
    grid: tuple[int, int],  # noqa: ARG001
    llm_hidden_size: int,
) -> QFormerConnector:
    """Raises ConfigError when `path` holds no weights, or others than a Q-Former of these sizes."""
    connector = QFormerConnector(vision_hidden_size, llm_hidden_size, options)
    if options.path is not None and not is_shapes_only():
        _load(connector, options.path)
    return connector


def _load(connector: QFormerConnector, path: str) -> None:
    folder = resolve_path(path)
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= read_tensors(file)
    own = {
        name: value
        for name, value in connector.state_dict().items()
        if name == "queries" or name.startswith("qformer.")
    }
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if wrong:
        raise ConfigError(
            f"{folder}: not the queries and Q-Former of these options: {len(wrong)} weights are missing, "
            f"too many or of another shape: {', '.join(wrong[:3])}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
