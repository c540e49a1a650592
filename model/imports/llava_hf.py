"""LlavaForConditionalGeneration of transformers: the `llava-hf` models of the hub, and our own exports.

Keys as 4.x writes them (`language_model.model.*`, `vision_tower.vision_model.*`), as 5.x does
(`language_model.model.*`, `vision_tower.*`), or as the model itself names them (`model.language_model.*`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.convert.checkpoint import read_json, weight_files
from prismcap.model.hf.files import MARKER, read_marker
from prismcap.model.imports._contract import Imported, ImportedRun, of_connector
from prismcap.model.imports._directories import (
    geometry_of,
    llm_of,
    read_config,
    tower_of,
    write_whole,
)
from prismcap.model.imports._parts import KEPT, LLM, VISION, Parts

TOWER = re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)")
PROJECTOR = re.compile(r"(?:model\.)?multi_modal_projector\.linear_([12])\.(weight|bias)")
HEAD = re.compile(r"(?:language_model\.)?(lm_head\..+)")
LANGUAGE = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(.+)")


class Options(Section):
    """template: of the conversations that the model was trained on; none: what one of our own exports says,
    else vicuna_v1 (LLaVA-1.5's)."""

    template: str | None = None


def build(options: Options, source: Path, folder: Path) -> Imported:
    """Raises ConfigError for another layout, and for unknown and missing weights."""
    values = read_json(source / "config.json")
    if values.get("model_type") != "llava":
        raise ConfigError(
            f"{source / 'config.json'}: model_type is {values.get('model_type')!r}, expected 'llava'"
        )
    if "text_config" not in values:
        raise ConfigError(f"{source / 'config.json'}: LLaVA's own layout: prismcap import llava …")
    marker = read_marker(source) if (source / MARKER).is_file() else {}
    if marker.get("weights") == "adapter":
        raise ConfigError(
            f"{source}: an export with its adapter apart, which would be lost: export the run again without "
            "--adapter, and import that"
        )
    config = read_config(LlavaConfig, source)
    llm = llm_of(config.text_config)
    name, tower = tower_of(config.vision_config)
    parts = Parts(source, folder, "LlavaForConditionalGeneration")
    parts.read(weight_files(source), _route)
    processor = write_whole(parts, source, llm, tower)
    layer = config.vision_feature_layer
    connector, weights = _connector(config, parts.kept, source)
    template = _template(options, marker)
    return Imported(
        ImportedRun(
            model={
                VISION: {"name": name, "layer": list(layer) if isinstance(layer, list | tuple) else layer}
                | _selection(config, name, source),
                "connector": connector,
                "llm": {"name": "causal_lm"},
            },
            weights=of_connector(weights),
            train={"connector": {"lr": 2e-5}},
            template=template,
            geometry=geometry_of(processor),
            prompt=marker.get("prompt"),
        ),
        notes=[] if marker else [f"the template is taken to be {template['name']}; template=… names another"],
    )


def _template(options: Options, marker: Mapping[str, Any]) -> dict[str, Any]:
    """Of exports from before template_options, the defaults. Raises ConfigError for options that are none."""
    if options.template is not None:
        return {"name": options.template}
    found = marker.get("template_options", {})
    if not isinstance(found, dict):
        raise ConfigError(f"{MARKER}: template_options is {found!r}, expected a mapping")
    return {"name": marker.get("template") or "vicuna_v1", **found}


def _route(name: str) -> tuple[str, str] | None:
    if (match := TOWER.fullmatch(name)) is not None:
        return VISION, match[1]
    if (match := PROJECTOR.fullmatch(name)) is not None:
        return KEPT, f"layers.{2 * int(match[1]) - 2}.{match[2]}"
    if (match := HEAD.fullmatch(name)) is not None:
        return LLM, match[1]
    if (match := LANGUAGE.fullmatch(name)) is not None:
        return LLM, f"model.{match[1]}"
    return None


def _selection(config: Any, name: str, source: Path) -> dict[str, Any]:
    """What the tower's component must leave out. LLaVA's `default` leaves out the first feature: CLIP's class
    token, and of SigLIP, which has none, the first patch."""
    strategy = config.vision_feature_select_strategy
    if name == "clip" and strategy != "default":
        raise ConfigError(
            f"{source / 'config.json'}: vision_feature_select_strategy: {strategy} keeps CLIP's class token, "
            "for which linear and mlp have no place"
        )
    return {"drop_first_patch": True} if name == "siglip" and strategy == "default" else {}


def _connector(
    config: Any, kept: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """The connector and its weights. Our exports write one linear layer as two, of which the second does
    nothing."""
    act = config.projector_hidden_act
    if act == "gelu":
        return {"name": "mlp", "depth": 2}, kept
    second, bias = kept.get("layers.2.weight"), kept.get("layers.2.bias")
    idle = (
        act == "linear"
        and second is not None
        and bias is not None
        and torch.equal(second.float(), torch.eye(len(second)))
        and not bias.any()
    )
    if not idle:
        raise ConfigError(
            f"{source / 'config.json'}: projector_hidden_act is {act!r}: known are 'gelu', and 'linear' with "
            "an identity for linear_2"
        )
    first = {"linear.weight": kept["layers.0.weight"]} if "layers.0.weight" in kept else {}
    if "layers.0.bias" in kept:
        first["linear.bias"] = kept["layers.0.bias"]
    return {"name": "linear"}, first
