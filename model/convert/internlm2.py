"""InternLM2 as a LLaMA: same mathematics, weights under other names and wqkv taken apart.

What is written loads with AutoModelForCausalLM and AutoTokenizer, and runs no code but transformers' own.
The layout is that of InternLM2's published modeling code.

Shape legend: H query heads, K key/value heads, G = H / K, D width of a head; R rows, any further dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from prismcap.configs.errors import ConfigError
from prismcap.model.convert.checkpoint import read_json, read_tensors, weight_files
from prismcap.model.convert.internlm2_tokenizer import END, build_tokenizer, write_tokenizer
from prismcap.model.convert.shards import ShardWriter, account_for
from prismcap.model.hf.files import check_replaceable, whole_folder, write_json
from prismcap.model.hf.llm import text_config

MARKER = "prismcap_conversion.json"  # says what is safe to replace
SAME_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
)
EMBEDDING = "model.embed_tokens.weight"
OUTSIDE_LAYERS = {
    "model.tok_embeddings.weight": EMBEDDING,
    "model.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_LAYERS = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
IN_LAYER = re.compile(r"(?P<layer>model\.layers\.\d+)\.(?P<part>.+)\.(?P<kind>weight|bias)")


def convert_internlm2(source: Path, destination: Path, chat_template: str, force: bool = False) -> list[str]:
    """Write `destination`, whole or not at all. Returns what was left out, a sentence each.

    chat_template: for a chat model whose tokenizer brings none. force: replace an older conversion there.
    Raises ConfigError when `source` is no InternLM2, a weight is unknown, missing or of another shape, a
    token lies past the embedding, or `destination` is taken; OSError when it cannot be written.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        check_replaceable(destination, MARKER)
        if not force:
            raise ConfigError(f"{destination}: holds an older conversion; --force replaces it")
    config, notes = llama_config(read_json(source / "config.json"), source / "config.json")
    tokenizer = build_tokenizer(source, config.vocab_size, chat_template)
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    with whole_folder(destination, MARKER) as folder:
        dtype = _write_weights(source, folder, model)
        values = text_config(model, config.vocab_size) | {"dtype": str(dtype).removeprefix("torch.")}
        write_json(folder / "config.json", values)
        write_json(folder / "generation_config.json", _generation_config(tokenizer))
        write_tokenizer(tokenizer, folder)
        write_json(folder / MARKER, {"from": "internlm2", "to": "llama", "left_out": notes})
    return notes


def llama_config(values: Mapping[str, Any], where: Path) -> tuple[LlamaConfig, list[str]]:
    """The config, and what of the original's it leaves out. Raises ConfigError naming the key.

    Dynamic rotary scaling is left out: it does nothing up to max_position_embeddings, and to know how long a
    text is costs a wait for the GPU in every forward pass, and cannot be traced for compiling or planning.
    """
    if values.get("model_type") != "internlm2":
        raise ConfigError(f"{where}: model_type is {values.get('model_type')!r}, expected 'internlm2'")
    missing = [key for key in (*SAME_KEYS, "rope_theta", "bias") if values.get(key) is None]
    if missing:
        raise ConfigError(f"{where}: no value for {', '.join(missing)}: InternLM2's own config has them all")
    notes = []
    scaling = values.get("rope_scaling")
    if scaling is not None:
        if scaling.get("type") != "dynamic":
            raise ConfigError(f"{where}: rope_scaling is {scaling!r}: only null and type dynamic are known")
        notes.append(
            f"rope_scaling {scaling} is left out: it acts only on texts of more than "
            f"max_position_embeddings ({values['max_position_embeddings']}) tokens"
        )
    config = LlamaConfig(
        **{key: values[key] for key in SAME_KEYS},
        rope_parameters={"rope_type": "default", "rope_theta": float(values["rope_theta"])},
        attention_bias=values["bias"],
    )
    return config, notes


def to_llama(name: str, value: Tensor, config: LlamaConfig) -> dict[str, Tensor]:
    """The tensors that one of InternLM2 becomes, none for an unknown name.

    Raises ConfigError for a wqkv of another size.
    """
    if name in OUTSIDE_LAYERS:
        return {OUTSIDE_LAYERS[name]: value}
    match = IN_LAYER.fullmatch(name)
    if match is None:
        return {}
    layer, part, kind = match["layer"], match["part"], match["kind"]
    if part == "attention.wqkv":
        heads = zip("qkv", split_wqkv(name, value, config), strict=True)
        return {f"{layer}.self_attn.{letter}_proj.{kind}": rows for letter, rows in heads}
    return {f"{layer}.{IN_LAYERS[part]}.{kind}": value} if part in IN_LAYERS else {}


def split_wqkv(name: str, packed_R: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of q [H D, …], k and v [K D, …] from [K (G + 2) D, …]: per key/value head its G query heads, then
    the key, then the value. The rotary embedding turns the same halves as LLaMA's: rows keep their order."""
    num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    group = num_heads // num_kv_heads
    expected = num_kv_heads * (group + 2) * config.head_dim
    if len(packed_R) != expected:
        raise ConfigError(
            f"{name} has {len(packed_R)} rows: {num_heads} query heads and {num_kv_heads} key/value heads "
            f"of width {config.head_dim} take {expected}"
        )
    heads_KGD = packed_R.unflatten(0, (num_kv_heads, group + 2, config.head_dim))
    q, k, v = heads_KGD.split([group, 1, 1], dim=1)
    return q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2)


def _write_weights(source: Path, folder: Path, model: LlamaForCausalLM) -> torch.dtype:
    """A shard of ours for each of theirs, so that only one is in memory. Returns the embedding's dtype."""
    shards = ShardWriter(folder)
    unknown: list[str] = []
    for file in weight_files(source):
        shards.write(_convert_shard(read_tensors(file), model.config, unknown))
    shards.finish()
    expected = {name: value.shape for name, value in model.state_dict().items()}
    account_for(shards.shapes, expected, unknown, source, "InternLM2")
    return shards.dtypes[EMBEDDING]


def _convert_shard(
    tensors: Mapping[str, Tensor], config: LlamaConfig, unknown: list[str]
) -> dict[str, Tensor]:
    """What the tensors of one file become. Names that InternLM2 does not have are added to `unknown`."""
    shard: dict[str, Tensor] = {}
    for name, value in tensors.items():
        parts = to_llama(name, value, config)
        if not parts:
            unknown.append(name)
        shard |= parts
    return shard


def _generation_config(tokenizer: Any) -> dict[str, Any]:
    """Where a text ends, and nothing of how it is sampled."""
    ends = {tokenizer.eos_token_id, tokenizer.get_vocab().get(END, tokenizer.eos_token_id)}
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": sorted(ends),
        "pad_token_id": tokenizer.pad_token_id,
    }
