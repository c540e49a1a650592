"""The resampler is transformers' Idefics2Connector, weight for weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Idefics2Config, Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

from prismcap.configs.errors import ConfigError
from prismcap.model.connector.resampler import Options

Make = Callable[..., Any]


@pytest.mark.parametrize(("heads", "kv_heads", "depth"), [(4, 2, 2), (4, 4, 1), (6, 1, 3)])
def test_tokens_are_those_of_idefics2(
    make: Make, shaken: Callable[..., Any], heads: int, kv_heads: int, depth: int
) -> None:
    perceiver = {
        "hidden_size": 32,
        "resampler_n_latents": 5,
        "resampler_depth": depth,
        "resampler_n_heads": heads,
        "resampler_head_dim": 6,
        "num_key_value_heads": kv_heads,
    }
    config = Idefics2Config(
        vision_config={"hidden_size": 16},
        text_config={"model_type": "mistral", "hidden_size": 32, "intermediate_size": 40},
        perceiver_config=perceiver,
    )
    reference = shaken(Idefics2Connector(config)).eval()
    connector = make("resampler", heads=heads, kv_heads=kv_heads, depth=depth, intermediate=40)
    connector.load_state_dict(reference.state_dict())
    features = torch.randn(3, 11, 16)
    mask = torch.ones(3, 11, dtype=torch.long)
    torch.testing.assert_close(connector(features), reference(features, attention_mask=mask))
    assert connector.num_tokens == 5


def test_defaults_are_those_of_idefics2() -> None:
    released, options = Idefics2PerceiverConfig(), Options()
    assert options.latents == released.resampler_n_latents
    assert options.depth == released.resampler_depth
    assert options.heads == released.resampler_n_heads
    assert options.head_size == released.resampler_head_dim
    assert options.kv_heads == released.num_key_value_heads


def test_latents_start_small_and_the_mlp_four_times_as_wide(make: Make) -> None:
    connector = make("resampler", latents=64, llm=64)
    assert connector.perceiver_resampler.latents.std().item() == pytest.approx(0.02, rel=0.05)
    assert connector.modality_projection.gate_proj.out_features == 4 * 64


def test_kv_heads_that_do_not_divide_heads_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="kv_heads = 3 does not divide heads = 4"):
        make("resampler", kv_heads=3)
