"""What holds for every connector, beyond shapes (tests/model/test_model_components.py): precision, gradients,
class tokens, sharded weights, starting scale, tensors without values, and operations counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prismcap.configs.registry import available, component_module
from prismcap.configs.schema.run import ModelConfig
from prismcap.model.build import build_captioner
from prismcap.model.shapes import shapes_only
from prismcap.train.flops import FlopModel

Make = Callable[..., Any]
MakeConfig = Callable[..., ModelConfig]
Small = dict[str, dict[str, Any]]
NAMES = available("connector")
LOOKS_AT_ALL = ["abstractor", "qformer", "resampler"]  # whatever the number of features


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_weight_and_the_features(make: Make, name: str) -> None:
    connector = make(name)
    features = torch.randn(2, 16, 16, requires_grad=True)
    tokens = connector(features)
    (tokens * torch.randn_like(tokens)).sum().backward()
    for key, value in connector.named_parameters():
        # the same bias on every key moves all scores of a query alike, and softmax does not see it
        if not key.endswith("key.bias"):
            assert value.grad is not None and float(value.grad.abs().max()) > 1e-5, key
    assert float(features.grad.abs().amin(dim=(0, 2)).min()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_is_near_fp32(make: Make, name: str) -> None:
    connector = make(name)
    features = torch.randn(2, 16, 16)
    weight = torch.randn(2, connector.num_tokens, 32)
    # the gradient of a key's bias is zero but for rounding (see above)
    parameters = [value for key, value in connector.named_parameters() if not key.endswith("key.bias")]

    def gradients() -> tuple[Tensor, list[Tensor]]:
        tokens = connector(features)
        found = torch.autograd.grad((tokens.float() * weight).sum(), parameters)
        return tokens.detach().float(), list(found)

    expected, expected_gradients = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        tokens, found = gradients()
    assert not torch.equal(tokens, expected)
    assert float((tokens - expected).norm() / expected.norm()) < 0.02
    for value, exact in zip(found, expected_gradients, strict=True):
        assert value.dtype == torch.float32
        assert float((value - exact).norm()) < 0.05 * float(exact.norm())


@pytest.mark.parametrize("name", NAMES)
def test_tokens_differ_from_the_start(make: Make, name: str) -> None:
    """Queries that start alike would give one token many times, and learn alike but for positions."""
    tokens = make(name)(torch.randn(1, 16, 16))[0].detach()
    distance = torch.cdist(tokens, tokens) + torch.eye(len(tokens)) * 1e9
    assert float(distance.min()) > 1e-3 * float(tokens.norm(dim=-1).mean())


def test_connectors_that_look_at_all_tokens_say_so() -> None:
    found = []
    for name in NAMES:
        module = component_module("connector", name)
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        own = [value for value in classes if value.__module__ == module.__name__]
        found += [name for value in own if getattr(value, "takes_class_tokens", False)]
    assert found == LOOKS_AT_ALL


@pytest.mark.parametrize("name", LOOKS_AT_ALL)
def test_any_number_of_features_is_taken_and_each_is_looked_at(make: Make, name: str) -> None:
    connector = make(name).eval()
    features = torch.randn(2, 19, 16)
    tokens = connector(features)
    assert tokens.shape == connector(features[:, :3]).shape == (2, connector.num_tokens, 32)
    for place in (0, 7, 18):
        changed = features.clone()
        changed[:, place] += 1.0
        assert float((connector(changed) - tokens).detach().abs().max()) > 1e-5


@contextmanager
def whole_only_in_own_call(module: nn.Module) -> Iterator[None]:
    """As ZeRO-3 does: weights without elements, but for the length of the call of the module they are of."""
    handles: list[Any] = []
    for part in module.modules():
        own = [(value, value.data) for value in part.parameters(recurse=False)]

        def gather(*_: Any, own: Any = own) -> None:
            for value, data in own:
                value.data = data

        def release(*_: Any, own: Any = own) -> None:
            for value, data in own:
                value.data = data.new_empty(0)

        release()
        handles += [part.register_forward_pre_hook(gather), part.register_forward_hook(release)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_read_in_their_own_modules_call_alone(make: Make, name: str) -> None:
    connector = make(name)
    features = torch.randn(2, 16, 16)
    with torch.no_grad():
        expected = connector(features)
        with whole_only_in_own_call(connector):
            assert all(value.numel() == 0 for value in connector.parameters())
            tokens = connector(features)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pixel_shuffle", {}),
        ("pooling", {}),
        ("pooling", {"depth": 1}),
        ("qformer", {}),
        ("qformer", {"projection_depth": 3}),
    ],
)
def test_tokens_can_start_with_the_spread_of_the_embeddings(
    model_config: MakeConfig, small: Small, name: str, options: dict[str, Any]
) -> None:
    config = model_config(connector={"name": name, "match_embedding_std": True} | small[name] | options)
    captioner = build_captioner(config)
    features = torch.randn(64, captioner.vision_encoder.num_patches, captioner.vision_encoder.hidden_size)
    expected = captioner.llm.get_input_embeddings().weight.std().item()
    with torch.no_grad():
        assert captioner.connector(features).std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", LOOKS_AT_ALL)
def test_shapes_alone_go_forward_and_backward(make: Make, name: str) -> None:
    with shapes_only():
        connector = make(name)
        features = torch.randn(3, 17, 16)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = connector(features)
    assert tokens.shape == (3, connector.num_tokens, 32)
    tokens.sum().backward()
    assert all(value.grad is not None for value in connector.parameters())


@pytest.mark.parametrize("on_meta", [False, True])
@pytest.mark.parametrize("name", LOOKS_AT_ALL)
def test_operations_are_those_that_torch_counts(
    model_config: MakeConfig, small: Small, name: str, on_meta: bool
) -> None:
    """FlopModel runs the connector on tensors without values; here it is run on real ones."""
    captioner = build_captioner(model_config(connector={"name": name} | small[name]))
    captioner.connector.requires_grad_(True)
    connector = captioner.connector.train()
    features = torch.randn(1, captioner.vision_encoder.num_patches, captioner.vision_encoder.hidden_size)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            tokens = connector(features)
        with FlopCounterMode(display=False) as backward:
            tokens.sum().backward()
    found = FlopModel.of(captioner.to("meta") if on_meta else captioner).connector
    assert found.forward == forward.get_total_flops() > 0
    assert found.backward == backward.get_total_flops() > found.forward
