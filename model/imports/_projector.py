"""LLaVA's projector, in the names of `linear` and `mlp`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.model.imports._parts import KEPT

LAYER = re.compile(r"layers\.(\d+)\.weight")


def layer_name(rest: str) -> str | None:
    """`weight` is that of the one linear layer, `2.weight` that of a Sequential's third module."""
    if rest in ("weight", "bias"):
        return f"linear.{rest}"
    return f"layers.{rest}" if re.fullmatch(r"\d+\.(weight|bias)", rest) else None


def route_projector(pattern: re.Pattern[str], name: str) -> tuple[str, str] | None:
    """A Route of a projector whose names `pattern` matches, layer and all behind its first group."""
    match = pattern.fullmatch(name)
    layer = layer_name(match[1]) if match is not None else None
    return (KEPT, layer) if layer is not None else None


def connector_of(weights: Mapping[str, Tensor], source: object) -> dict[str, Any]:
    """The connector's component of its weights. Raises ConfigError when they are none of a projector's."""
    if "linear.weight" in weights:
        return {"name": "linear"}
    indices = sorted(int(match[1]) for name in weights if (match := LAYER.fullmatch(name)))
    if not indices or indices != list(range(0, 2 * len(indices), 2)):
        raise ConfigError(
            f"{source}: no projector of linear layers with GELU between them, but "
            f"{', '.join(sorted(weights)) or 'nothing'}"
        )
    return {"name": "mlp", "depth": len(indices)}
