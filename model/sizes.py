"""Sizes of the published models that the recipes name, for plans without weights and without a hub."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_suffix(".yaml")


def published_sizes(name: str) -> dict[str, Any] | None:
    """Of a hub name, or of what a recipe calls a converted model: the keys of its config.json that decide
    shapes, `model_type` among them. None for a name that sizes.yaml does not have."""
    sizes = _read().get(name)
    return None if sizes is None else dict(sizes)


@cache
def _read() -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return values
