"""LLaVA's own checkpoints, v1 and v1.5 (layout: its released code, llava/model): stage 1's projector, whole
models, and LoRA checkpoints.

- `mm_projector.bin`, alone or in a directory with config.json, on top of `llm=…`
- whole: `model.*`, `lm_head.weight`, `model.mm_projector.*`, and `model.vision_tower.*` where it was trained;
  the vision tower is the config's `mm_vision_tower`, or `vision_encoder=…`
- LoRA: `adapter_model` and `non_lora_trainables.bin`, merged into `llm=…`

Not here: delta weights (add them to LLaMA with LLaVA's own script first), anyres (v1.6), pictures between
`<im_start>` and `<im_end>`, LLMs other than LLaMA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.configs.schema.data import Geometry
from prismcap.model.convert.checkpoint import SINGLE_FILES, read_json, weight_files
from prismcap.model.imports._adapter import Adapter, merge
from prismcap.model.imports._contract import Imported, ImportedRun, of_connector, require
from prismcap.model.imports._directories import (
    copy_tokenizer,
    lasting,
    llm_config,
    llm_of,
    tower_config,
    tower_config_at,
    tower_of,
)
from prismcap.model.imports._parts import LLM, VISION, Parts
from prismcap.model.imports._projector import connector_of, route_projector

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA = "non_lora_trainables.bin"
PEFT = r"(?:base_model\.model\.)?"  # of what was saved while an adapter was in place
PROJECTOR = re.compile(PEFT + r"(?:model\.)?mm_projector\.(.+)")
TOWER = re.compile(r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.+)")
LLAMA = re.compile(r"model\..+|lm_head\.weight")
# keys that say how pictures enter, and the values that are this layout
ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("llava", "llava_llama"),
    "mm_vision_select_feature": ("patch", None),
    "mm_use_im_start_end": (False, None),
    "image_aspect_ratio": ("pad", "square", None),
    "mm_projector_type": ("linear", "mlp2x_gelu", "mlp3x_gelu", None),
}


class Options(Section):
    """llm: the base LLM of a projector or an adapter. vision_encoder: directory or hub name of the tower;
    none: what config.json names. template: of the last stage; none: plain for a projector alone, else
    vicuna_v1."""

    llm: str | None = None
    vision_encoder: str | None = None
    template: str | None = None


def build(options: Options, source: Path, folder: Path) -> Imported:
    """Raises ConfigError for another layout, unknown and missing weights, and for options that are needed."""
    config = _config(source)
    if _is_projector_alone(source):
        return _projector_alone(options, source, folder, config)
    parts = Parts(source, folder, "LLaVA")
    tower = _tower_path(options, config)
    vision = _tower_component(tower, config)
    if (source / "adapter_config.json").is_file():
        base = require(options.llm, "llm", "the LLM that this adapter was trained on")
        parts.read([source / NON_LORA], _route_projector)
        merge(Adapter(source), base, parts)
        return _run(options, config, parts, {"name": "causal_lm"}, vision)
    if options.llm is not None:
        raise ConfigError(f"llm={options.llm}: {source} holds a whole LLM of its own; leave llm out")
    parts.read(weight_files(source), _route)
    llm = llm_of(_llama_config(config))
    models = {LLM: llm}
    if parts.has(VISION):
        _, models[VISION] = tower_of(tower_config_at(tower))
        del vision["path"]
    parts.finish(models)
    parts.write_config(LLM, llm_config(llm))
    copy_tokenizer(source, folder / LLM)
    if parts.has(VISION):
        parts.write_config(VISION, tower_config(models[VISION]))
    return _run(options, config, parts, {"name": "causal_lm"}, vision)


def _config(source: Path) -> dict[str, Any]:
    """config.json of the directory, checked; empty for a projector without one."""
    where = (source.parent if source.is_file() else source) / "config.json"
    if not where.is_file() and (source.is_file() or (source / PROJECTOR_FILE).is_file()):
        return {}
    config = read_json(where)
    for key, values in ONLY.items():
        if config.get(key) not in values:
            known = ", ".join(map(repr, values))
            raise ConfigError(f"{where}: {key} is {config.get(key)!r}: only {known} can be imported")
    return config


def _is_projector_alone(source: Path) -> bool:
    """Whole models have the file too, beside their weights."""
    weights = (*SINGLE_FILES, *(f"{name}.index.json" for name in SINGLE_FILES), "adapter_config.json")
    return source.is_file() or (
        (source / PROJECTOR_FILE).is_file() and not any((source / name).is_file() for name in weights)
    )


def _projector_alone(options: Options, source: Path, folder: Path, config: Mapping[str, Any]) -> Imported:
    llm = require(options.llm, "llm", "the LLM that this projector was trained with")
    parts = Parts(source, folder, "LLaVA's projector")
    parts.read([source if source.is_file() else source / PROJECTOR_FILE], _route_projector)
    parts.finish({})
    vision = _tower_component(_tower_path(options, config), config)
    return _run(options, config, parts, {"name": "causal_lm", "path": lasting(llm)}, vision, "plain")


def _route(name: str) -> tuple[str, str] | None:
    if (match := TOWER.fullmatch(name)) is not None:
        return VISION, match[1]
    if (found := _route_projector(name)) is not None:
        return found
    return (LLM, name) if LLAMA.fullmatch(name) and "mm_projector" not in name else None


def _route_projector(name: str) -> tuple[str, str] | None:
    return route_projector(PROJECTOR, name)


def _tower_path(options: Options, config: Mapping[str, Any]) -> str:
    named = options.vision_encoder or config.get("mm_vision_tower")
    return require(named, VISION, "no config.json names the vision tower")


def _tower_component(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    name, _ = tower_of(tower_config_at(path))
    return {"name": name, "path": lasting(path), "layer": config.get("mm_vision_select_layer", -2)}


def _llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    """What LLaVA adds to a LLaMA's config is left out."""
    known = LlamaConfig().to_dict().keys() - {"architectures", "model_type", "transformers_version", "dtype"}
    return LlamaConfig(
        **{key: config[key] for key in (*known, "rope_theta", "rope_scaling") if key in config}
    )


def _run(
    options: Options,
    config: Mapping[str, Any],
    parts: Parts,
    llm: Mapping[str, Any],
    vision: Mapping[str, Any],
    template: str = "vicuna_v1",
) -> Imported:
    connector = connector_of(parts.kept, parts.source)
    # v1 crops (`square`), v1.5 pads; stage 1 always crops
    geometry: Geometry = "pad" if config.get("image_aspect_ratio") == "pad" else "center_crop"
    rate = 2e-3 if connector["name"] == "linear" else 1e-3
    return Imported(
        ImportedRun(
            model={VISION: vision, "connector": connector, "llm": llm},
            weights=of_connector(parts.kept),
            train={"connector": {"lr": rate if template == "plain" else 2e-5}},
            template={"name": options.template or template},
            geometry=geometry,
        )
    )
