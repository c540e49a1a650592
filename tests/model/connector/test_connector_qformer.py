"""The Q-Former connector is BLIP-2's, weight for weight, and MiniGPT-4's in size and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Blip2Config, Blip2ForConditionalGeneration

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import ModelConfig
from prismcap.model.build import build_captioner
from prismcap.model.shapes import shapes_only
from prismcap.model.trainable import group_of

Make = Callable[..., Any]
Shaken = Callable[..., Any]
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.3,  # by default 1e-10: a picture that nobody could see
}
QFORMER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "cross_attention_frequency": 2,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


@pytest.fixture
def blip2(shaken: Shaken) -> Any:
    parts = {"vision_config": TOWER, "qformer_config": QFORMER, "text_config": LLAMA}
    config = Blip2Config(**parts, num_query_tokens=5, image_token_index=9)
    return shaken(Blip2ForConditionalGeneration(config)).eval()


def with_weights_of(blip2: Any, connector: Any) -> Any:
    """What an import does: names as they are, but for two."""
    connector.qformer.load_state_dict(blip2.qformer.state_dict())
    connector.projection.load_state_dict(blip2.language_projection.state_dict())
    with torch.no_grad():
        connector.queries.copy_(blip2.query_tokens)
    return connector


@pytest.mark.parametrize("training", [False, True])
def test_tokens_are_those_of_blip2(make: Make, blip2: Any, training: bool) -> None:
    """Also in training mode, as a frozen Q-Former is one that drops nothing."""
    connector = with_weights_of(blip2, make("qformer")).train(training)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        features = blip2.vision_model(pixels).last_hidden_state
        assert features.shape == (3, 17, 16) and float(features.std(dim=(0, 1)).min()) > 0.05
        expected = blip2.get_image_features(pixels).pooler_output
        torch.testing.assert_close(connector(features), expected)


def attention(part: Any, of_PNE: Tensor, to: Tensor, heads: int) -> Tensor:
    """BERT's attention block with its residual and LayerNorm, head by head."""
    size = part.attention.query.out_features // heads
    query, key, value = part.attention.query(of_PNE), part.attention.key(to), part.attention.value(to)
    found = []
    for start in range(0, heads * size, size):
        head = slice(start, start + size)
        scores = torch.einsum("pne,pke->pnk", query[..., head], key[..., head]) / size**0.5
        found.append(torch.einsum("pnk,pke->pne", scores.softmax(-1), value[..., head]))
    return part.output.LayerNorm(part.output.dense(torch.cat(found, dim=-1)) + of_PNE)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("frequency", "depth"), [(2, 1), (1, 3), (3, 1)])
def test_tokens_follow_the_equations(
    make: Make, shaken: Shaken, layer_norm: bool, frequency: int, depth: int
) -> None:
    options = {"cross_attention_frequency": frequency, "projection_depth": depth, "layer_norm": layer_norm}
    connector = shaken(make("qformer", **options))
    features = torch.randn(2, 7, 16)
    seen = features
    if layer_norm:
        seen = F.layer_norm(features, (16,), connector.norm.weight, connector.norm.bias)
    qformer = connector.qformer
    state = qformer.layernorm(connector.queries.expand(2, -1, -1))
    for index, layer in enumerate(qformer.encoder.layer):
        state = attention(layer.attention, state, state, heads=4)
        if index % frequency == 0:
            state = attention(layer.crossattention, state, seen, heads=4)
        inner = F.gelu(layer.intermediate_query.dense(state))
        state = layer.output_query.LayerNorm(layer.output_query.dense(inner) + state)
    layers = [connector.projection] if depth == 1 else connector.projection[::2]
    for index, layer in enumerate(layers):
        state = (F.gelu(state) if index else state) @ layer.weight.T + layer.bias
    assert len(layers) == depth
    torch.testing.assert_close(connector(features), state, atol=1e-5, rtol=1e-4)


def test_norm_and_qformer_stay_fp32_under_autocast(make: Make, shaken: Shaken) -> None:
    connector = shaken(make("qformer", layer_norm=True))
    features = torch.randn(2, 16, 16).bfloat16()  # as an encoder under autocast gives them
    expected = connector.query(features.float())
    seen: list[Tensor] = []
    connector.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = connector(features)
        rounded = connector.projection(expected)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], expected)
    assert tokens.dtype == torch.bfloat16
    assert torch.equal(tokens, rounded)


def test_weights_in_bf16_compute_in_bf16(make: Make) -> None:
    """DeepSpeed's ZeRO makes all weights bf16, for its masters are elsewhere; features may still be fp32."""
    connector = make("qformer", layer_norm=True)
    features = torch.randn(2, 16, 16)
    expected = connector(features)
    connector.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = connector(features)
    torch.testing.assert_close(tokens.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("width", "weights"), [(4096, 3_149_824), (5120, 3_937_280)])
def test_minigpt4s_one_layer_has_the_published_size(
    model_config: Callable[..., ModelConfig], width: int, weights: int
) -> None:
    """3.15M at 7B: 768 * 4096 + 4096. Names are such that a freeze policy can tell it from the rest."""
    vision = {"hidden_size": 1408, "num_attention_heads": 16, "num_hidden_layers": 1, "patch_size": 14}
    vision |= {"image_size": 224, "intermediate_size": 6144}
    llm = {"model_type": "llama", "hidden_size": width, "num_hidden_layers": 1, "vocab_size": 100}
    with shapes_only():
        captioner = build_captioner(
            model_config(
                vision_encoder={"name": "clip", "config": vision},
                connector={"name": "qformer"},
                llm={"name": "random", "config": llm | {"intermediate_size": 8, "num_attention_heads": 32}},
            )
        )
    names = dict(captioner.connector.named_parameters())
    assert {name.partition(".")[0] for name in names} == {"queries", "qformer", "projection"}
    assert sum(value.numel() for name, value in names.items() if name.startswith("projection.")) == weights
    assert names["queries"].shape == (1, 32, 768)
    # BERT-base's layers, each second with keys and values of 1408, and the first LayerNorm
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 2 * 2 * 768
    cross = 2 * (768 * 768 + 768) + 2 * (1408 * 768 + 768) + 2 * 768
    assert sum(value.numel() for name, value in names.items() if name.startswith("qformer.")) == (
        12 * layer + 6 * cross + 2 * 768
    )
    assert {group_of(f"connector.{name}") for name in names} == {"connector"}
    assert captioner.token_spec.tokens_per_tile == 32


def test_heads_that_do_not_divide_the_width_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="heads = 5 does not divide hidden = 24"):
        make("qformer", heads=5)
