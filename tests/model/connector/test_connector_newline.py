"""The newline of anyres pictures as a part of its connector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prismcap.configs.registry import available
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig
from prismcap.model.build import build_captioner
from prismcap.model.contracts import Connector
from prismcap.model.trainable import prepare_stage, trainable_parameters

WITH_GRID = {
    "linear": (4, 4),
    "mlp": (4, 4),
    "patch_concat": (4, 2),
    "pixel_shuffle": (2, 2),
    "pooling": (2, 2),
}


@pytest.mark.parametrize("name", available("connector"))
def test_a_grid_of_tokens_has_as_many_as_there_are_tokens(make: Callable[..., Connector], name: str) -> None:
    connector = make(name)
    assert connector.newline is None and connector.token_grid == WITH_GRID.get(name)
    if connector.token_grid is not None:
        rows, columns = connector.token_grid
        assert rows * columns == connector.num_tokens


def test_a_token_lies_where_its_patches_lie(make: Callable[..., Connector]) -> None:
    """Of a tile where one patch differs, one token of the grid does, at that place."""
    for name, (rows, columns) in WITH_GRID.items():
        connector = make(name)
        features = torch.randn(1, 16, 16)
        for row, column in ((0, 3), (2, 1), (3, 3)):
            changed = features.clone()
            changed[0, row * 4 + column] += 1.0
            with torch.no_grad():
                moved = (connector(changed) - connector(features)).abs().amax(-1).view(rows, columns)
            assert (moved > 1e-6).nonzero().tolist() == [[row * rows // 4, column * columns // 4]], name


def test_it_is_read_in_its_own_call_alone_and_trains_with_the_connector(
    model_config: Callable[..., ModelConfig],
) -> None:
    """As an engine that shards weights needs it: elsewhere the weight has no elements."""
    captioner = build_captioner(model_config().model_copy(update={"image_newline": True}))
    prepare_stage(captioner, {"connector": GroupConfig(lr=1e-3)})
    newline = captioner.connector.newline
    assert newline is not None and "connector.newline.weight" in trainable_parameters(captioner)
    features = torch.randn(2, 16, 16)
    with torch.no_grad():
        expected = captioner._image_tokens(features)
        whole = newline.weight.data

        def gather(*_: Any) -> None:
            newline.weight.data = whole

        def release(*_: Any) -> None:
            newline.weight.data = whole.new_empty(0)

        release()
        newline.register_forward_pre_hook(gather)
        newline.register_forward_hook(release)
        assert torch.equal(captioner._image_tokens(features), expected)
    assert torch.equal(expected[-1], whole) and len(expected) == 33
