"""A causal LM of transformers with its tokenizer as one GGUF file.

Keys and the order of rows within heads: llama.cpp, convert_hf_to_gguf.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.model.gguf.tokenizer import add_tokenizer
from prismcap.model.gguf.writing import REMEDY, add_tensors, finish, named, start
from prismcap.model.hf.export import Precision
from prismcap.model.hf.llm import is_tied

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
# dynamic differs only beyond max_position_embeddings, which is the context length that the file gives
PLAIN_ROPE = ("default", "dynamic")


def write_language(
    path: Path, llm: Any, tokenizer: Any, chat_template: str, name: str, precision: Precision
) -> None:
    """The file for `--model`. Raises ConfigError where GGUF cannot say the LLM or its tokenizer; OSError."""
    config = llm.config
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ConfigError(
            f"--format gguf: the LLM is a {config.model_type}, known are {', '.join(ARCHITECTURES)}; {REMEDY}"
        )
    if config.hidden_act != "silu":
        raise ConfigError(f"--format gguf: the LLM's hidden_act is {config.hidden_act}, llama.cpp's is silu")
    writer = start(path, gguf.MODEL_ARCH_NAMES[architecture], "model", name, precision)
    rows = llm.get_input_embeddings().num_embeddings
    writer.add_vocab_size(rows)
    _add_sizes(writer, config)
    _add_rope(writer, config)
    add_tokenizer(writer, tokenizer, rows)
    writer.add_chat_template(chat_template)
    add_tensors(writer, _tensors(llm, architecture), precision)
    finish(writer)


def _add_sizes(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_size = _head_size(config)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)


def _add_rope(writer: Any, config: Any) -> None:
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind not in PLAIN_ROPE:
        raise ConfigError(
            f"--format gguf: the LLM's rope_type is {kind}, not linear, {', '.join(PLAIN_ROPE)}; {REMEDY}"
        )


def _head_size(config: Any) -> int:
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def _tensors(llm: Any, architecture: Any) -> dict[str, Tensor]:
    config = llm.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors: dict[str, Tensor] = {}
    for name, value in llm.state_dict().items():
        if name == "lm_head.weight" and is_tied(llm):
            continue
        layer = name.split(".")[-2]
        if architecture == gguf.MODEL_ARCH.LLAMA and layer in heads:
            value = _interleaved(value, heads[layer])
        tensors[named(names, name)] = value
    return tensors


def _interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """llama.cpp rotates neighbouring rows of a llama's head, transformers those half a head apart."""
    pairs: Tensor = rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2)
    return pairs.reshape(rows.shape)
