"""MiniGPT-4's `.pth` of the one layer that it trains (layout: its released code, minigpt4/runners),
on BLIP-2 as `prismcap import blip2` leaves it, and Vicuna-v0 or Llama-2-chat.

Which of the two it is, the width of `llama_proj` says: that of the Q-Former, or of four patches. The variant
for Llama-2 does not load BLIP-2's final norm of the vision tower: its ones and zeros are weights of the stage
here. transformers gives that norm an epsilon of 1e-6, the original 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.convert.checkpoint import check_tensors, read_json, read_pickle
from prismcap.model.imports._contract import Imported, ImportedRun
from prismcap.model.imports._directories import lasting
from prismcap.model.imports._parts import TABLES
from prismcap.model.imports.blip2 import OPTIONS_FILE, QFORMER, VISION

WEIGHT, BIAS = "llama_proj.weight", "llama_proj.bias"
PATCHES = 4  # of a row, joined by the variant for Llama-2
PROMPT = "Describe this image in detail."  # one of the four instructions of stage 2
RATE = 3e-5  # stage 2


class Options(Section):
    """blip2: what `prismcap import blip2` wrote. llm: directory or hub name of Vicuna, or of Llama-2-chat."""

    blip2: str
    llm: str


def build(options: Options, source: Path, folder: Path) -> Imported:  # noqa: ARG001
    """Raises ConfigError for another layout, unknown and missing weights, and a width that fits neither."""
    projection = _projection(source)
    blip2 = resolve_path(options.blip2).resolve()
    width = projection["weight"].shape[1]
    qformer = read_json(blip2 / QFORMER / OPTIONS_FILE)
    patch = int(read_json(blip2 / VISION / "config.json")["hidden_size"])
    vision: dict[str, Any] = {"name": "eva_vit_g", "path": str(blip2 / VISION)}
    connector: dict[str, Any]
    if width == qformer["hidden"]:
        vision["class_token"] = "keep"
        connector = {"name": "qformer", "path": str(blip2 / QFORMER), **qformer}
        weights = {f"connector.projection.{name}": value for name, value in projection.items()}
        train = {"connector": {"lr": RATE, "only": ["projection.*"]}}
        template: Mapping[str, Any] = {"name": "minigpt4"}
    elif width == PATCHES * patch:
        connector = {"name": "patch_concat", "k": [1, PATCHES], "depth": 1, "layer_norm": False}
        weights = {f"connector.layers.0.{name}": value for name, value in projection.items()}
        norm = f"{VISION}.tower.post_layernorm"
        weights |= {f"{norm}.weight": torch.ones(patch), f"{norm}.bias": torch.zeros(patch)}
        train = {"connector": {"lr": RATE}, VISION: {"lr": RATE, "only": ["tower.post_layernorm.*"]}}
        template = {"name": "llama_2", "system": None}
    else:
        raise ConfigError(
            f"{source}: {WEIGHT} takes features of width {width}: the Q-Former of {blip2} gives "
            f"{qformer['hidden']}, and {PATCHES} of its patches are {PATCHES * patch}"
        )
    llm = {"name": "causal_lm", "path": lasting(options.llm)}
    return Imported(
        ImportedRun(
            model={VISION: vision, "connector": connector, "llm": llm},
            weights=weights,
            train=train,
            template=template,
            geometry="resize",
            prompt=PROMPT,
        )
    )


def _projection(source: Path) -> dict[str, Tensor]:
    """weight [H, width] and bias [H]. Beside `model` lie the optimiser's state and the like, which are left.

    In `model` are what was trained and the tables that modules carry with them.
    """
    model = read_pickle(source).get("model")
    if not isinstance(model, dict):
        raise ConfigError(f"{source}: has no mapping 'model': is this a checkpoint of MiniGPT-4?")
    check_tensors(model, f"{source}: model")
    unknown = [name for name in model if name not in (WEIGHT, BIAS) and not name.endswith(TABLES)]
    missing = [name for name in (WEIGHT, BIAS) if name not in model]
    if unknown or missing:
        raise ConfigError(
            f"{source}: not the weights of MiniGPT-4's projection: {len(unknown)} unknown "
            f"{sorted(unknown)[:3]}, {len(missing)} missing {missing}"
        )
    if model[WEIGHT].ndim != 2 or model[BIAS].shape != model[WEIGHT].shape[:1]:
        raise ConfigError(
            f"{source}: {WEIGHT} {list(model[WEIGHT].shape)} and {BIAS} {list(model[BIAS].shape)}"
        )
    return {"weight": model[WEIGHT].clone(), "bias": model[BIAS].clone()}
