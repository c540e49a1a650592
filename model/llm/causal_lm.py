"""A causal language model of transformers, from a directory or the hub."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from prismcap.configs.schema.base import Section
from prismcap.model.attention import register_segments
from prismcap.model.contracts import LanguageModel
from prismcap.model.huggingface import load_pretrained, local_or_hub, refuse_unconverted, unreachable
from prismcap.model.shapes import is_shapes_only

logger = logging.getLogger(__name__)

AttentionImplementation = Literal["segments", "sdpa", "eager", "flash_attention_2"]


class Options(Section):
    path: str = Field(description="directory (or cache:…) or hub name")
    revision: str | None = Field(default=None, description="commit or tag of a hub name")
    attn_implementation: AttentionImplementation = "segments"
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")


def build(options: Options) -> LanguageModel:
    """The model in fp32 and its tokenizer. Raises ConfigError when they cannot be loaded."""
    if options.trust_remote_code:
        logger.warning("trust_remote_code: running code that comes with %s", options.path)
    else:
        refuse_unconverted(options.path, options.revision)
    register_segments()
    shared = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    model = load_pretrained(
        AutoModelForCausalLM,
        options.path,
        dtype=torch.float32,
        attn_implementation=options.attn_implementation,
        **shared,
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(local_or_hub(options.path), **shared)
    except (OSError, ValueError) as error:
        if is_shapes_only():
            return LanguageModel(model=model.eval(), tokenizer=None)
        raise unreachable(options.path, error) from error
    return LanguageModel(model=model.eval(), tokenizer=tokenizer)
