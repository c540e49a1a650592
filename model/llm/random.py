"""A small, randomly initialised causal LM: for tests, and for ablations that start from nothing."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.attention import register_segments
from prismcap.model.contracts import LanguageModel
from prismcap.model.huggingface import local_or_hub, unreachable
from prismcap.model.llm.causal_lm import AttentionImplementation


class Options(Section):
    config: dict[str, Any] = Field(
        description="model_type (llama, qwen2, …) and the sizes that differ from its own"
    )
    tokenizer: str | None = Field(
        default=None, description="directory (or cache:…) or hub name; none: no text"
    )
    attn_implementation: AttentionImplementation = "segments"


def build(options: Options) -> LanguageModel:
    """The model in fp32; its vocabulary is the tokenizer's where the config gives no vocab_size.

    Raises ConfigError for a config that transformers refuses, or a tokenizer that cannot be loaded.
    """
    tokenizer = None
    if options.tokenizer is not None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(local_or_hub(options.tokenizer))
        except OSError as error:
            raise unreachable(options.tokenizer, error) from error
    values = dict(options.config)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ConfigError("llm.config needs a model_type, for example llama")
    if tokenizer is not None:
        values.setdefault("vocab_size", len(tokenizer))
    try:
        config = AutoConfig.for_model(model_type, **values)
    except ValueError as error:
        raise ConfigError(f"llm.config: {error}") from error
    register_segments()
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=options.attn_implementation
    )
    return LanguageModel(model=model.eval(), tokenizer=tokenizer)
