"""Connectors that make one token of a block of patches: patch_concat, pixel_shuffle, pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from prismcap.configs.errors import ConfigError

Make = Callable[..., Any]


def block_of(features_PKD: Tensor, grid: tuple[int, int], high: int, wide: int, token: int) -> list[Tensor]:
    """The patches of one token, each [P, D], by counting through the grid."""
    token_row, token_column = divmod(token, grid[1] // wide)
    return [
        features_PKD[:, row * grid[1] + column]
        for row in range(token_row * high, (token_row + 1) * high)
        for column in range(token_column * wide, (token_column + 1) * wide)
    ]


@pytest.mark.parametrize(("side", "k"), [(4, 2), (6, 2), (6, 3), (4, 1)])
def test_pixel_shuffle_is_transformers_idefics3_connector(make: Make, side: int, k: int) -> None:
    vision, text = {"hidden_size": 16}, {"model_type": "llama", "hidden_size": 32}
    config = Idefics3Config(vision_config=vision, text_config=text, scale_factor=k)
    reference = Idefics3Connector(config)
    connector = make("pixel_shuffle", grid=(side, side), k=k)
    connector.projection.load_state_dict(reference.modality_projection.proj.state_dict())
    features = torch.randn(2, side * side, 16)
    torch.testing.assert_close(connector(features), reference(features))
    assert connector.num_tokens == (side // k) ** 2


def test_pixel_shuffle_takes_grids_that_are_not_square(make: Make) -> None:
    grid, features = (2, 6), torch.randn(2, 12, 16)
    connector = make("pixel_shuffle", grid=grid)
    joined = [torch.cat(block_of(features, grid, 2, 2, token), dim=-1) for token in range(3)]
    expected = torch.stack([patches @ connector.projection.weight.T for patches in joined], dim=1)
    torch.testing.assert_close(connector(features), expected)


@pytest.mark.parametrize(("grid", "k"), [((4, 4), 2), ((6, 9), 3), ((2, 6), 2), ((3, 3), 3), ((4, 4), 1)])
@pytest.mark.parametrize("depth", [1, 2])
def test_pooling_is_a_plain_loop(make: Make, grid: tuple[int, int], k: int, depth: int) -> None:
    connector = make("pooling", grid=grid, k=k, depth=depth)
    features = torch.randn(2, grid[0] * grid[1], 16)
    expected = []
    for token in range((grid[0] // k) * (grid[1] // k)):
        patches = block_of(features, grid, k, k, token)
        value = sum(patches[1:], patches[0]) / k**2
        for index, layer in enumerate(connector.layers[::2]):
            value = (F.gelu(value) if index else value) @ layer.weight.T + layer.bias
        expected.append(value)
    assert len(connector.layers[::2]) == depth and connector.num_tokens == len(expected)
    torch.testing.assert_close(connector(features), torch.stack(expected, dim=1))


def test_patch_concat_joins_four_patches_of_a_row_as_minigpt4_does(make: Make) -> None:
    """MiniGPT-4 for Llama-2: the patches as they come, four of them to a token, one linear layer."""
    connector = make("patch_concat", grid=(8, 8), k=[1, 4], depth=1, layer_norm=False)
    features = torch.randn(2, 64, 16)
    expected = features.view(2, 16, 64) @ connector.layers[0].weight.T + connector.layers[0].bias
    assert connector.num_tokens == 16
    torch.testing.assert_close(connector(features), expected)


def test_minigpt4_for_llama2_has_64_tokens_of_5632(make: Make) -> None:
    connector = make("patch_concat", vision=1408, grid=(16, 16), llm=64, k=[1, 4], depth=1, layer_norm=False)
    assert (connector.num_tokens, connector.layers[0].in_features) == (64, 5632)


@pytest.mark.parametrize("block", [(2, 2), (1, 3), (2, 1)])
def test_patch_concat_joins_any_block(make: Make, block: tuple[int, int]) -> None:
    grid, features = (4, 6), torch.randn(2, 24, 16)
    connector = make("patch_concat", grid=grid, k=list(block))
    tokens = 24 // (block[0] * block[1])
    joined = [torch.cat(block_of(features, grid, *block, token), dim=-1) for token in range(tokens)]
    assert connector.num_tokens == tokens
    torch.testing.assert_close(connector.join(features), torch.stack(joined, dim=1))


@pytest.mark.parametrize(
    ("name", "grid", "k"),
    [
        ("pixel_shuffle", (4, 6), 4),
        ("pooling", (6, 4), 3),
        ("patch_concat", (4, 4), [1, 3]),
    ],
)
def test_a_grid_that_blocks_do_not_fill_is_refused(
    make: Make, name: str, grid: tuple[int, int], k: Any
) -> None:
    told = tuple(k) if isinstance(k, list) else k
    with pytest.raises(ConfigError) as caught:
        make(name, grid=grid, k=k)
    expected = f"{name}: the encoder's grid of {grid[0]} x {grid[1]} patches is not divisible by k = {told}"
    assert str(caught.value).startswith(expected) and "change k" in str(caught.value)


@pytest.mark.parametrize(("name", "k"), [("pooling", 0), ("pixel_shuffle", 0), ("patch_concat", [2, 0])])
def test_blocks_without_patches_are_refused(make: Make, name: str, k: Any) -> None:
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        make(name, k=k)
