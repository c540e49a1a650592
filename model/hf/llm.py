"""The LLM's part of an export: its config, and its weights with a row for the image token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prismcap.configs.errors import ConfigError

DROPPED_KEYS = ("_name_or_path", "id2label", "label2id", "transformers_version")


def text_config(llm: Any, vocab_size: int) -> dict[str, Any]:
    """The LLM's config in words that transformers 4.57 and 5 both understand.

    Raises ConfigError for a model with code of its own.
    """
    config: dict[str, Any] = llm.config.to_dict()
    if "auto_map" in config:
        raise ConfigError(
            f"the LLM ({config.get('model_type')}) runs code of its own and cannot be exported: convert it "
            "to a model type of transformers, or train without an export (--no-dry-export)"
        )
    for key in DROPPED_KEYS:
        config.pop(key, None)
    config["vocab_size"] = vocab_size
    config["tie_word_embeddings"] = is_tied(llm)
    # llama.cpp's converter routes on it, and 5.x leaves it out
    config["architectures"] = [type(llm).__name__]
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        # 4.57 reads these two alone, and would take its own default base without a word
        config["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return config


def text_state(llm: Any, vocab_size: int) -> dict[str, Tensor]:
    """The LLM's state dict, embeddings and head grown to `vocab_size` rows.

    New rows are the mean of the old ones: logits of the old vocabulary are unchanged, and a mean
    logit is never the largest, so the image token is never generated. Tied heads are left out.
    """
    state: dict[str, Tensor] = dict(llm.state_dict())
    embeddings = _names_of(llm, llm.get_input_embeddings().weight)
    head = _names_of(llm, llm.get_output_embeddings().weight)
    for name in embeddings[1:] if is_tied(llm) else ():
        del state[name]
    rows = {embeddings[0], head[0], head[0].removesuffix("weight") + "bias"}
    for name in rows & state.keys():
        state[name] = grow(state[name], vocab_size)
    return state


def is_tied(llm: Any) -> bool:
    """Whether the head is the embeddings themselves. The config alone may say otherwise."""
    return llm.get_output_embeddings().weight is llm.get_input_embeddings().weight


def grow(rows_VH: Tensor, vocab_size: int) -> Tensor:
    """At least `vocab_size` rows, new ones being the mean of the old."""
    missing = vocab_size - len(rows_VH)
    if missing <= 0:
        return rows_VH
    mean = rows_VH.detach().float().mean(0, keepdim=True).to(rows_VH.dtype)
    return torch.cat([rows_VH.detach(), mean.expand(missing, *mean.shape[1:])])


def _names_of(llm: Any, weight: Tensor) -> list[str]:
    """All names of one parameter, that of its own module first."""
    return [name for name, value in llm.named_parameters(remove_duplicate=False) if value is weight]
