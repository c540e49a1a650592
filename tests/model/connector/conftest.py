"""Small connectors, with every weight far from its start, so that no part can go missing unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prismcap.configs.registry import component_options
from prismcap.configs.schema.base import Component
from prismcap.model.contracts import Connector

VISION, LLM, GRID = 16, 32, (4, 4)  # widths, and the grid, of tests/model/conftest.py's tower and LLaMA
SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {},
    "patch_concat": {"k": [1, 2]},
    "pixel_shuffle": {},
    "pooling": {},
    "qformer": {"num_queries": 5, "hidden": 24, "layers": 3, "heads": 4, "intermediate": 40},
    "abstractor": {"num_queries": 5, "hidden": 24, "layers": 2, "heads": 4, "intermediate": 40},
    "resampler": {"latents": 5, "depth": 2, "heads": 4, "head_size": 6, "kv_heads": 2},
}
Make = Callable[..., Connector]


@pytest.fixture
def make() -> Make:
    """A connector by name; `options` come on top of SMALL's."""

    def make(
        name: str, *, vision: int = VISION, grid: tuple[int, int] = GRID, llm: int = LLM, **options: Any
    ) -> Connector:
        module, parsed = component_options("connector", Component(name=name, **SMALL.get(name, {}) | options))
        connector: Connector = module.build(parsed, vision, grid, llm)
        return connector

    return make


@pytest.fixture
def shaken() -> Callable[[nn.Module], nn.Module]:
    """The module with noise on all of its weights: norms that are not one, biases that are not zero."""

    @torch.no_grad()
    def shake(module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        return module

    return shake


@pytest.fixture
def small() -> dict[str, dict[str, Any]]:
    """SMALL, for tests that write a config."""
    return SMALL
