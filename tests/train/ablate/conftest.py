"""Ablations of the tiny run of tests/train/conftest.py: two stages, align (4 steps) and instruct (7)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ablation_axes import SECOND, axis

from prismcap.configs.load import load_ablation
from prismcap.configs.schema.ablation import AblationConfig

MakeAblation = Callable[..., AblationConfig]


@pytest.fixture
def make_ablation(world: Path, tmp_path: Path) -> MakeAblation:
    """An ablation of the tiny run that measures nothing, of the axes given; other keys replace its own."""

    def make(axes: dict[str, Any] | None = None, **keys: Any) -> AblationConfig:
        values = {
            "name": "abl",
            "output_dir": str(tmp_path / "out"),
            "question": "What matters?",
            "run": str(world / "config.yaml"),
            "axes": axes or {"second": axis(**SECOND)},
            "figures": ["held_out.all_right"],
            "launch": {"evaluate": False},
        }
        path = tmp_path / "abl.yaml"
        path.write_text(json.dumps(values | keys))  # which is YAML too
        return load_ablation(path)

    return make
