"""mPLUG-Owl v1 (`MAGAer13/mplug-owl-llama-7b` and its like; layout: the released modeling_mplug_owl.py).

Its vision tower is CLIP's with q, k and v in one weight, head by head; its abstractor is the connector of
that name.

Shape legend: A heads, F head width, D tower width = A F.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.convert.checkpoint import read_json, weight_files
from prismcap.model.hf.connectors_prismcap import INNER_NORM_EPS
from prismcap.model.imports._contract import Imported, ImportedRun, of_connector
from prismcap.model.imports._directories import (
    geometry_of,
    llm_of,
    tower_of,
    write_whole,
)
from prismcap.model.imports._parts import KEPT, LLM, VISION, Convert, Parts

# defaults of MplugOwlVisionConfig and MplugOwlVisualAbstractorConfig, for what a config.json leaves out
TOWER_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-6,
}
ABSTRACTOR_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-6,
}
EMBEDDINGS = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.patch_embed.weight": "embeddings.patch_embedding.weight",
    "embeddings.position_embedding": "embeddings.position_embedding.weight",
    "embeddings.pre_layernorm.weight": "pre_layrnorm.weight",
    "embeddings.pre_layernorm.bias": "pre_layrnorm.bias",
    "post_layernorm.weight": "post_layernorm.weight",
    "post_layernorm.bias": "post_layernorm.bias",
}
PACKED = "self_attn.query_key_value"
IN_TOWER = {
    "self_attn.dense": "self_attn.out_proj",
    "input_layernorm": "layer_norm1",
    "post_attention_layernorm": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    PACKED: PACKED,  # taken apart when it is written
}
IN_ABSTRACTOR = {
    "attention.query": "query",
    "attention.key": "key",
    "attention.value": "value",
    "output.out_proj": "out",
    "output.norm2": "norm2",
    "output.mlp.w1": "w1",
    "output.mlp.w2": "w2",
    "output.mlp.w3": "w3",
    "output.mlp.ffn_ln": "inner_norm",
    "norm1": "norm1",
    "normk": "normk",
}
AROUND_ABSTRACTOR = {
    "query_tokens": "queries",
    "abstractor.visual_fc.weight": "projection.weight",
    "abstractor.visual_fc.bias": "projection.bias",
    "abstractor.vit_eos": "end_token",
}
TOWER_LAYER = re.compile(r"(encoder\.layers\.\d+)\.(.+)\.(weight|bias)")
ABSTRACTOR_LAYER = re.compile(r"abstractor\.encoder\.(layers\.\d+)\.crossattention\.(.+)\.(weight|bias)")


class Options(Section):
    """Nothing to choose."""


def build(options: Options, source: Path, folder: Path) -> Imported:  # noqa: ARG001
    """Raises ConfigError for another layout, and for unknown and missing weights."""
    where = source / "config.json"
    values = read_json(where)
    if values.get("model_type") != "mplug-owl":
        raise ConfigError(f"{where}: model_type is {values.get('model_type')!r}, expected 'mplug-owl'")
    abstractor = ABSTRACTOR_DEFAULTS | values.get("visual_abstractor_config", {})
    if abstractor["layer_norm_eps"] != INNER_NORM_EPS:
        raise ConfigError(
            f"{where}: visual_abstractor_config.layer_norm_eps is {abstractor['layer_norm_eps']}, the "
            f"connector abstractor has {INNER_NORM_EPS}"
        )
    vision = TOWER_DEFAULTS | values.get("vision_config", {})
    _, tower = tower_of(CLIPVisionConfig(**{key: vision[key] for key in TOWER_DEFAULTS}))
    llm = llm_of(_llama_config(values.get("text_config", {}), where))
    parts = Parts(source, folder, "mPLUG-Owl")
    parts.read(weight_files(source), _route, _converted(vision["num_attention_heads"]))
    processor = write_whole(parts, source, llm, tower)
    tower_options = {"name": "clip", "layer": -1, "post_layernorm": True, "class_token": "keep"}
    return Imported(
        ImportedRun(
            model={
                VISION: tower_options,
                "connector": _abstractor(abstractor, values),
                "llm": {"name": "causal_lm"},
            },
            weights=of_connector(parts.kept),
            train={"connector": {"lr": 1e-4}},
            template={"name": "owl"},
            geometry=geometry_of(processor),
        )
    )


def _abstractor(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": "abstractor",
        "num_queries": values.get("num_query_tokens", 64),
        "hidden": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "intermediate": config["intermediate_size"],
    }


def _llama_config(values: Mapping[str, Any], where: Path) -> LlamaConfig:
    if values.get("model_type", "llama") != "llama":
        raise ConfigError(f"{where}: text_config.model_type is {values['model_type']!r}, expected 'llama'")
    return LlamaConfig.from_dict(dict(values))


def _route(name: str) -> tuple[str, str] | None:
    if name in AROUND_ABSTRACTOR:
        return KEPT, AROUND_ABSTRACTOR[name]
    if (match := ABSTRACTOR_LAYER.fullmatch(name)) is not None and match[2] in IN_ABSTRACTOR:
        return KEPT, f"{match[1]}.{IN_ABSTRACTOR[match[2]]}.{match[3]}"
    if name.startswith("language_model."):
        return LLM, name.removeprefix("language_model.")
    inner = name.removeprefix("vision_model.")
    if inner == name:
        return None
    if inner in EMBEDDINGS:
        return VISION, EMBEDDINGS[inner]
    match = TOWER_LAYER.fullmatch(inner)
    if match is None or match[2] not in IN_TOWER:
        return None
    return VISION, f"{match[1]}.{IN_TOWER[match[2]]}.{match[3]}"


def _converted(num_heads: int) -> Convert:
    """What a tensor of theirs is in CLIP's shapes."""

    def convert(part: str, name: str, value: Tensor) -> Mapping[str, Tensor]:
        if part == VISION and PACKED in name:
            return {
                name.replace(PACKED, key): rows for key, rows in split_heads(name, value, num_heads).items()
            }
        if name == EMBEDDINGS["embeddings.cls_token"]:
            return {name: value.flatten()}
        if name == EMBEDDINGS["embeddings.position_embedding"]:
            return {name: value.flatten(0, 1)}
        return {name: value}

    return convert


def split_heads(name: str, packed: Tensor, num_heads: int) -> dict[str, Tensor]:
    """q, k and v, [D, …] each, from [A 3 F, …]: for each head its F rows of q, then of k, then of v."""
    if packed.shape[0] % (3 * num_heads):
        raise ConfigError(f"{name}: {packed.shape[0]} rows are no q, k and v of {num_heads} heads")
    by_head = packed.unflatten(0, (num_heads, 3, -1))
    return {
        f"self_attn.{letter}_proj": part.flatten(0, 1)
        for letter, part in zip("qkv", by_head.unbind(1), strict=True)
    }
