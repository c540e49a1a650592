"""mPLUG-Owl's abstractor against its equations, written out: loops over heads and layers, no module of ours.

Equations: q = norm1(z); k, v of [norm1(z), normk(x)]; z = norm1(z) + out(attention), or z + ... when not
original; z = z + w2(LN(silu(w1 h) * w3 h)) with h = norm2(z), without LN when not original.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.model.connector.abstractor import AbstractorConnector, Options

Make = Callable[..., Any]
Shaken = Callable[..., Any]
HEADS = 4


def normed(values: Tensor, weights: dict[str, Tensor], name: str, eps: float) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(values: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return torch.einsum("pnd,ed->pne", values, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def transcribed(weights: dict[str, Tensor], features_PKD: Tensor, layers: int, original: bool) -> Tensor:
    x = linear(features_PKD, weights, "resize") if "resize.weight" in weights else features_PKD
    z = weights["queries"].repeat(len(features_PKD), 1, 1)
    for index in range(layers):
        w = {
            name.removeprefix(f"layers.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"layers.{index}.")
        }
        q_in = normed(z, w, "norm1", 1e-5)
        kv_in = torch.cat([q_in, normed(x, w, "normk", 1e-5)], dim=1)
        query, key, value = linear(q_in, w, "query"), linear(kv_in, w, "key"), linear(kv_in, w, "value")
        size = query.shape[-1] // HEADS
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = torch.einsum("pqf,pkf->pqk", query[..., part], key[..., part]) / size**0.5
            share = scores.exp() / scores.exp().sum(-1, keepdim=True)
            heads.append(torch.einsum("pqk,pkf->pqf", share, value[..., part]))
        attended = linear(torch.cat(heads, dim=-1), w, "out")
        z = (q_in if original else z) + attended
        h = normed(z, w, "norm2", 1e-5)
        gate = linear(h, w, "w1")
        inner = gate * torch.sigmoid(gate) * linear(h, w, "w3")
        if original:
            inner = normed(inner, w, "inner_norm", 1e-6)
        z = z + linear(inner, w, "w2")
    tokens = linear(z, weights, "projection")
    return torch.cat([tokens, weights["end_token"].repeat(len(features_PKD), 1, 1)], dim=1)


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("vision", [24, 16])
def test_tokens_follow_the_equations(make: Make, shaken: Shaken, original: bool, vision: int) -> None:
    connector = shaken(make("abstractor", vision=vision, original=original, layers=3))
    weights = dict(connector.named_parameters())
    assert ("resize.weight" in weights) == (vision != 24)
    assert any(name.endswith("inner_norm.weight") for name in weights) == original
    features = torch.randn(2, 11, vision)
    expected = transcribed(weights, features, layers=3, original=original)
    torch.testing.assert_close(connector(features), expected, atol=1e-5, rtol=1e-4)
    if original:  # or the switch would be none
        plain = transcribed(weights, features, layers=3, original=False)
        assert not torch.allclose(plain, expected, atol=1e-2)


def test_the_defaults_are_mplug_owls() -> None:
    """65 tokens; 64 queries of 1024; six layers of four 1024 x 1024 products and an MLP of 2816."""
    with torch.device("meta"):
        connector = AbstractorConnector(1024, 4096, Options())
    weights = dict(connector.named_parameters())
    assert connector.num_tokens == 65
    assert weights["queries"].shape == (1, 64, 1024) and weights["end_token"].shape == (1, 1, 4096)
    layer = 4 * (1024**2 + 1024) + 3 * 1024 * 2816 + 2 * 2816 + 1024 + 3 * 2 * 1024 + 2 * 2816
    expected = 6 * layer + 64 * 1024 + 1024 * 4096 + 4096 + 4096
    assert sum(value.numel() for value in weights.values()) == expected


def test_queries_and_end_token_start_small_and_unlike_each_other(make: Make) -> None:
    connector = make("abstractor", num_queries=64, hidden=128, llm=2048)
    assert connector.queries.std().item() == pytest.approx(0.02, rel=0.05)
    assert connector.end_token.std().item() == pytest.approx(0.02, rel=0.1)


def test_heads_that_do_not_divide_the_width_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="heads = 5 does not divide hidden = 24"):
        make("abstractor", heads=5)
