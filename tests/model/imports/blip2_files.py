"""A small random BLIP-2, and its files as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration

QFORMER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 16,
}
QUERIES = 5


def make_blip2(tools: Any) -> Any:
    """With a small LLaMA."""
    config = Blip2Config(
        vision_config={**tools.tower_config, "initializer_range": 0.3},
        qformer_config=QFORMER,
        text_config={"model_type": "llama", **tools.llama_config},
        num_query_tokens=QUERIES,
        image_token_index=9,
    )
    return tools.shake(Blip2ForConditionalGeneration(config))


def write_blip2(
    tools: Any, blip2: Any, layout: str = "sharded-safetensors", **changes: Tensor | None
) -> Path:
    """The keys of the hub's files. changes: weights added or replaced; None takes one out."""
    source: Path = tools.tmp_path / "blip2-hf"
    blip2.config.save_pretrained(source)
    state = {name.removeprefix("model."): value for name, value in blip2.state_dict().items()}
    state["qformer.embeddings.position_ids"] = torch.arange(512)[None]  # as the first versions saved it
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    tools.write_weights(source, state, layout)
    return source
