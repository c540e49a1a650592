"""Training a part of a group: patterns over parameter names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig
from prismcap.data.schema import Batch, Encoded
from prismcap.model.build import build_captioner
from prismcap.model.freeze import matching
from prismcap.model.trainable import finish_stage, prepare_stage, trainable_parameters

MakeConfig = Callable[..., ModelConfig]
NAMES = ["projection.weight", "projection.bias", "layers.2.weight", "layers.20.weight", "Layers.2.weight"]


@pytest.fixture
def batch(make_sample: Callable[..., Encoded], pack: Callable[..., Batch]) -> Batch:
    samples = [make_sample("a", 1, 16, seed=1), make_sample("b", 1, 16, seed=2)]
    return pack([samples], torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (None, NAMES),
        (("projection.*",), NAMES[:2]),
        (("*.bias", "layers.20.*"), ["projection.bias", "layers.20.weight"]),
        (("layers.?.*",), ["layers.2.weight"]),
        (("layers.[0-9]*",), ["layers.2.weight", "layers.20.weight"]),
        (("[lL]ayers.2.weight",), ["layers.2.weight", "Layers.2.weight"]),
    ],
)
def test_patterns_are_those_of_a_shell(patterns: tuple[str, ...] | None, expected: list[str]) -> None:
    assert matching(NAMES, patterns, "x") == expected


def test_a_part_trains_and_the_rest_is_bit_identical(model_config: MakeConfig, batch: Batch) -> None:
    captioner = build_captioner(model_config())
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    train: dict[Any, GroupConfig] = {
        "vision_encoder": GroupConfig(lr=1e-2, only=("tower.encoder.layers.1.*", "*.patch_embedding.*")),
        "connector": GroupConfig(lr=1e-2, only=("layers.2.*",)),
        "llm": GroupConfig(lr=1e-2, only=("*.k_proj.weight",)),
    }
    prepare_stage(captioner, train)
    layer = [f"vision_encoder.{name}" for name, _ in captioner.vision_encoder.named_parameters()]
    expected = {name for name in layer if "encoder.layers.1." in name or "patch_embedding" in name}
    assert len(expected) == 16 + 2
    expected |= {"connector.layers.2.weight", "connector.layers.2.bias"}
    expected |= {f"llm.model.layers.{i}.self_attn.k_proj.weight" for i in range(2)}
    assert trainable_parameters(captioner).keys() == expected
    step(captioner.train(), batch)
    after = captioner.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == expected
    finish_stage(captioner)
    assert not trainable_parameters(captioner)


def step(captioner: Any, batch: Batch) -> None:
    parameters = list(trainable_parameters(captioner).values())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    captioner(batch).loss_sum.backward()
    assert all(parameter.grad is not None for parameter in parameters)
    optimizer.step()


def test_gradients_stop_at_the_lowest_layer_that_trains(model_config: MakeConfig, batch: Batch) -> None:
    captioner = build_captioner(model_config())
    prepare_stage(captioner, {"vision_encoder": GroupConfig(lr=1e-2, only=("tower.encoder.layers.1.*",))})
    reached: list[int] = []

    def note(index: int) -> Callable[..., None]:
        return lambda *called: reached.append(index) if called[-1].requires_grad else None

    for index, layer in enumerate(captioner.vision_encoder.tower.encoder.layers):
        assert isinstance(layer, nn.Module)
        layer.register_forward_hook(note(index))
    captioner.train()(batch)
    assert reached == [1]


def test_a_pattern_without_a_match_names_what_is_near(model_config: MakeConfig) -> None:
    captioner = build_captioner(model_config())
    with pytest.raises(
        ConfigError,
        match=r"train\.vision_encoder\.only: 'tower\.encoder\.layer\.1\.\*' matches none .*layers\.1\.",
    ):
        prepare_stage(
            captioner,
            {"vision_encoder": GroupConfig(lr=1e-2, only=("tower.*", "tower.encoder.layer.1.*"))},
        )
    # a layer that is there, but above the chosen one: it would have no gradient
    with pytest.raises(ConfigError, match=r"'tower\.encoder\.layers\.2\.\*' matches none"):
        prepare_stage(captioner, {"vision_encoder": GroupConfig(lr=1e-2, only=("tower.encoder.layers.2.*",))})
    with pytest.raises(ValueError, match="at least 1 item"):
        GroupConfig(lr=1e-2, only=())
