"""linear and mlp against their formulas: LLaVA's one and two layers, MiniGPT-4's one and three, any depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

Make = Callable[..., Any]


def test_linear_is_one_matrix_and_a_bias(make: Make) -> None:
    connector = make("linear")
    features = torch.randn(2, 16, 16)
    expected = torch.einsum("pkd,hd->pkh", features, connector.linear.weight) + connector.linear.bias
    torch.testing.assert_close(connector(features), expected)
    assert connector.num_tokens == 16
    assert {name for name, _ in connector.named_parameters()} == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden", [None, 20])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_mlp_of_any_depth(
    make: Make, shaken: Callable[..., Any], depth: int, hidden: int | None, layer_norm: bool
) -> None:
    connector = shaken(make("mlp", depth=depth, hidden=hidden, layer_norm=layer_norm))
    features = torch.randn(2, 16, 16)
    value = features
    if layer_norm:
        spread = features.var(-1, keepdim=True, unbiased=False) + 1e-5
        value = (features - features.mean(-1, keepdim=True)) / spread.sqrt()
        value = value * connector.norm.weight + connector.norm.bias
    layers = connector.layers[::2]
    for index, layer in enumerate(layers):
        value = (F.gelu(value) if index else value) @ layer.weight.T + layer.bias
    assert [layer.out_features for layer in layers] == [hidden or 32] * (depth - 1) + [32]
    torch.testing.assert_close(connector(features), value)


def test_llava_15_sizes(make: Make) -> None:
    """20,979,712 weights at 7B (LLaVA-1.5's published projector)."""
    with torch.device("meta"):
        connector = make("mlp", vision=1024, grid=(24, 24), llm=4096)
    assert sum(value.numel() for value in connector.parameters()) == 20_979_712
    assert connector.num_tokens == 576
