"""BLIP-2 in transformers' layout (the `Salesforce/blip2-*` models of the hub): its vision tower, Q-Former and
queries, by the prefixes of their names. Its LLM is not read.

Leaves no run but parts for MiniGPT-4 and its like: `vision_encoder/` is a `path` of eva_vit_g, `qformer/` one
of the connector qformer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionModel

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.connector.qformer import Options as QFormerOptions
from prismcap.model.connector.qformer import QFormerConnector
from prismcap.model.convert.checkpoint import read_json, weight_files
from prismcap.model.hf.files import write_json
from prismcap.model.imports._contract import Imported
from prismcap.model.imports._directories import processor_values, read_config, tower_config, write_processor
from prismcap.model.imports._parts import LEFT_OUT, VISION, Parts

QFORMER = "qformer"
OPTIONS_FILE = "options.json"  # the connector's, sizes all
# BLIP-2's language side
NOT_NEEDED = ("language_model.", "language_projection.")
# what the connector leaves at the defaults of Blip2QFormerConfig
DEFAULTS = ("hidden_act", "layer_norm_eps", "use_qformer_text_input")

# the connector's options, by their keys of config.json
SIZES = {
    "num_queries": "num_query_tokens",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "cross_attention_frequency": "cross_attention_frequency",
    "intermediate": "intermediate_size",
}


class Options(Section):
    """Nothing to choose."""


def build(options: Options, source: Path, folder: Path) -> Imported:  # noqa: ARG001
    """Raises ConfigError for another layout, and for unknown and missing weights."""
    where = source / "config.json"
    values = read_json(where)
    if values.get("model_type") != "blip-2":
        raise ConfigError(f"{where}: model_type is {values.get('model_type')!r}, expected 'blip-2'")
    config = read_config(Blip2Config, source)
    qformer_options = _qformer_options(config, where)
    with torch.device("meta"):
        tower = Blip2VisionModel(config.vision_config)
        qformer = QFormerConnector(config.vision_config.hidden_size, 1, qformer_options)
    qformer.projection = nn.Identity()
    parts = Parts(source, folder, "BLIP-2")
    parts.read(weight_files(source), _route)
    parts.finish({VISION: tower, QFORMER: qformer})
    parts.write_config(VISION, tower_config(tower))
    write_processor(processor_values(source), folder / VISION)
    write_json(folder / QFORMER / OPTIONS_FILE, qformer_options.model_dump(include=set(SIZES)))
    return Imported(None)


def _qformer_options(config: Any, where: Path) -> QFormerOptions:
    """The connector's options. Raises ConfigError for a Q-Former that it cannot be."""
    qformer = config.qformer_config
    for key in DEFAULTS:
        usual = getattr(Blip2QFormerConfig(), key)
        if getattr(qformer, key) != usual:
            raise ConfigError(
                f"{where}: qformer_config.{key} is {getattr(qformer, key)!r}, expected {usual!r}"
            )
    sizes = {
        ours: getattr(config if ours == "num_queries" else qformer, theirs) for ours, theirs in SIZES.items()
    }
    return QFormerOptions(**sizes)


def _route(name: str) -> tuple[str, str] | None:
    if name.startswith("vision_model."):
        return VISION, name.removeprefix("vision_model.")
    if name.startswith("qformer."):
        return QFORMER, name
    if name == "query_tokens":
        return QFORMER, "queries"
    return (LEFT_OUT, "") if name.startswith(NOT_NEEDED) else None
