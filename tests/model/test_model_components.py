"""One contract per kind, over every file of its folder: a new file is tested by being there.

A file whose options have no usable defaults gets a line in EXAMPLES.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import available, component_options
from prismcap.configs.schema.base import Component
from prismcap.data.schema import ImageSpec
from prismcap.model.contracts import Connector, LanguageModel, VisionEncoder
from prismcap.model.weights import save_weights

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
DINOV2 = {key: value for key, value in TOWER.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "vision_encoder": {
        "timm": {"model": "tf_efficientnet_lite0", "image_size": 64},
        "siglip": {"config": TOWER},
        "clip": {"config": TOWER},
        "dinov2": {"config": DINOV2},
        "dinov2_registers": {"config": DINOV2 | {"num_register_tokens": 3}},
        # by default its random weights are next to zero, and tiles would not differ
        "eva_vit_g": {"config": TOWER | {"initializer_range": 0.02}},
    },
    "connector": {
        "patch_concat": {"k": 2},
        "qformer": {"num_queries": 5, "hidden": 24, "layers": 3, "heads": 4, "intermediate": 40},
        "abstractor": {"num_queries": 5, "hidden": 24, "layers": 2, "heads": 4, "intermediate": 40},
        "resampler": {"latents": 5, "depth": 2, "heads": 4, "head_size": 6, "kv_heads": 2},
    },
    "llm": {"random": {"config": LLAMA}},
}


def build(kind: str, name: str, *arguments: Any, **options: Any) -> Any:
    options = options or EXAMPLES[kind].get(name, {})
    module, parsed = component_options(kind, Component(name=name, **options))
    return module.build(parsed, *arguments)


@pytest.mark.parametrize("name", available("vision_encoder"))
def test_every_vision_encoder_keeps_the_contract(name: str) -> None:
    encoder = build("vision_encoder", name).eval()
    assert isinstance(encoder, VisionEncoder)
    assert isinstance(encoder.image_spec, ImageSpec)
    size = encoder.image_spec.size_px
    tiles = torch.randn(2, 3, size, size)
    features = encoder(tiles)
    assert features.shape == (2, encoder.features_per_tile, encoder.hidden_size)
    assert features.dtype == torch.float32
    # tiles do not see each other
    torch.testing.assert_close(encoder(tiles[1:]), features[1:], atol=1e-5, rtol=1e-5)
    # what forward does not read is exactly what it says, or training would leave gradients out
    features.sum().backward()
    unread = {name for name, value in encoder.named_parameters() if value.grad is None}
    assert unread == encoder.unused_parameters()
    encoder.set_gradient_checkpointing(True)
    torch.testing.assert_close(encoder.train()(tiles).shape, features.shape)


@pytest.mark.parametrize("name", available("vision_encoder"))
def test_every_vision_encoder_is_row_major(name: str) -> None:
    """A spot in one corner changes the patch of that corner most (random weights keep that much)."""
    encoder = build("vision_encoder", name).eval()
    rows, columns = encoder.grid
    size = encoder.image_spec.size_px
    blank = torch.zeros(1, 3, size, size)
    spot = blank.clone()
    spot[:, :, : size // rows, size - size // columns :] = 3.0  # top right
    with torch.no_grad():
        change = (encoder(spot) - encoder(blank)).norm(dim=-1)[0]
    assert int(change.argmax()) == columns - 1


@pytest.mark.parametrize("name", available("connector"))
@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_every_connector_keeps_the_contract(name: str, grid: tuple[int, int]) -> None:
    connector = build("connector", name, 16, grid, 24)
    assert isinstance(connector, Connector)
    features = torch.randn(3, grid[0] * grid[1], 16)
    tokens = connector(features)
    assert tokens.shape == (3, connector.num_tokens, 24)
    torch.testing.assert_close(connector(features[1:2]), tokens[1:2])
    tokens.sum().backward()
    assert all(value.grad is not None for value in connector.parameters())


@pytest.mark.parametrize("name", available("llm"))
def test_every_llm_keeps_the_contract(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options = EXAMPLES["llm"].get(name, {})
    if name in ("causal_lm", "gguf"):
        path, _ = request.getfixturevalue("tiny_gguf")
        if name == "causal_lm":
            from prismcap.model.llm.gguf import converted

            path = converted(path, tmp_path / "converted")
        request.getfixturevalue("monkeypatch").setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))
        options = {"path": str(path)}
    built = build("llm", name, **options)
    assert isinstance(built, LanguageModel)
    assert {value.dtype for value in built.model.parameters()} == {torch.float32}
    width = built.model.get_input_embeddings().embedding_dim
    hidden = built.model.base_model(inputs_embeds=torch.randn(1, 5, width)).last_hidden_state
    vocabulary = built.model.get_input_embeddings().num_embeddings
    assert built.model.get_output_embeddings()(hidden).shape == (1, 5, vocabulary)


def test_gguf_is_converted_once_to_the_same_model(
    tiny_gguf: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismcap.model.llm import gguf

    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))
    path, reference = tiny_gguf
    built = build("llm", "gguf", path=str(path))
    input_ids = torch.randint(0, 200, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(built.model(input_ids).logits, reference(input_ids).logits)
    assert built.tokenizer.decode(built.tokenizer("a red hammer").input_ids) == "a red hammer"
    folders = list((tmp_path / "cache/models").iterdir())
    assert len(folders) == 1 and not folders[0].name.startswith(".")
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted a second time"))
    build("llm", "gguf", path=str(path))


def test_a_failed_gguf_conversion_leaves_nothing(
    tiny_gguf: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismcap.model.llm import gguf

    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))

    def stopped(_: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_convert", stopped)
    with pytest.raises(KeyboardInterrupt):
        build("llm", "gguf", path=str(tiny_gguf[0]))
    assert list((tmp_path / "cache/models").iterdir()) == []


def test_a_tower_is_found_in_a_whole_clip_model_and_processor_values_are_read(tmp_path: Path) -> None:
    clip = CLIPModel(CLIPConfig(vision_config=TOWER, text_config={**TOWER, "vocab_size": 50})).eval()
    clip.save_pretrained(tmp_path)
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    values |= {"image_processor_type": "CLIPImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    encoder = build("vision_encoder", "clip", path=str(tmp_path))
    assert (encoder.image_spec.mean, encoder.image_spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    tiles = torch.randn(2, 3, 16, 16)
    expected = clip.vision_model(tiles, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(encoder(tiles), expected)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "resnet10t"])
def test_timm_features_are_the_last_feature_map(name: str, tmp_path: Path) -> None:
    options = {"img_size": 64} if name.startswith("vit") else {}
    whole = timm.create_model(name, **options).eval()
    save_weights(tmp_path / "w.safetensors", whole.state_dict())
    encoder = build(
        "vision_encoder", "timm", model=name, weights=str(tmp_path / "w.safetensors"), image_size=64
    ).eval()
    tiles = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_features(tiles)
        expected = expected[:, 1:] if name.startswith("vit") else expected.flatten(2).transpose(1, 2)
        torch.testing.assert_close(encoder(tiles), expected, atol=1e-4, rtol=1e-4)
    assert encoder.image_spec.mean == tuple(timm.get_pretrained_cfg(name).mean)


def test_what_timm_keeps_of_a_head_is_named_and_nothing_else_changes() -> None:
    encoder = build("vision_encoder", "timm", model="test_convnext", image_size=64)
    encoder.requires_grad_(False).train()
    encoder.model.stem.eval()
    unused = encoder.unused_parameters()
    assert unused and all(name.startswith("model.head.norm.") for name in unused)
    assert encoder.training and not encoder.model.stem.training
    assert not any(value.requires_grad or value.grad is not None for value in encoder.parameters())
    encoder.requires_grad_(True)
    encoder(torch.randn(1, 3, 64, 64)).sum().backward()
    assert {name for name, value in encoder.named_parameters() if value.grad is None} == unused


def test_patch_concat_joins_neighbours_row_major() -> None:
    connector = build("connector", "patch_concat", 1, (4, 6), 8, k=2)
    features = torch.arange(24.0).view(1, 24, 1)
    joined = connector.join(features)[0]
    assert joined[0].tolist() == [0, 1, 6, 7]
    assert joined[1].tolist() == [2, 3, 8, 9]
    assert joined[3].tolist() == [12, 13, 18, 19]


def _llama_folder(path: Path) -> str:
    LlamaForCausalLM(LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})).save_pretrained(
        path
    )
    return str(path)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "vision_encoder",
            {"name": "timm", "model": "tf_eficientnet_lite0"},
            "Did you mean 'tf_efficientnet_lite0'",
        ),
        (
            "vision_encoder",
            {"name": "timm", "model": "vit_tiny_patch16_224", "image_size": 70},
            "take 64 or 80",
        ),
        (
            "vision_encoder",
            {"name": "timm", "model": "resnet10t", "weights": "cache:none.st"},
            "prismcap fetch",
        ),
        ("vision_encoder", {"name": "siglip", "path": None}, "exactly one of path and config"),
        ("vision_encoder", {"name": "siglip", "config": TOWER, "layer": -5}, "hidden_states 0 to 3"),
        ("vision_encoder", {"name": "clip", "path": "./nowhere"}, "no such directory"),
        ("vision_encoder", {"name": "dino"}, "no vision_encoder is called 'dino'"),
        ("llm", {"name": "gguf", "path": "nowhere.gguf"}, "no GGUF file at nowhere.gguf"),
        ("llm", {"name": "causal_lm", "path": "cache:models/none"}, "prismcap fetch"),
        ("llm", {"name": "random", "config": {"hidden_size": 4}}, "needs a model_type"),
        ("llm", {"name": "random", "config": {"model_type": "lama"}}, "lama"),
        ("llm", {"name": "random", "config": LLAMA, "tokeniser": "x"}, "Did you mean 'tokenizer'"),
    ],
)
def test_bad_options_say_what_would_be_right(
    kind: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path))
    name = options.pop("name")
    try:
        with pytest.raises(ConfigError, match=message):
            build(kind, name, **options)
    finally:
        options["name"] = name


def test_connector_errors_name_the_grid() -> None:
    with pytest.raises(ConfigError, match="grid of 7 x 7 patches is not divisible by k = 2"):
        build("connector", "patch_concat", 16, (7, 7), 24)


def test_an_unreachable_hub_name_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"nobody/nothing.*give the path of its directory"):
        build("llm", "causal_lm", path="nobody/nothing")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", timm.create_model("resnet10t").state_dict())
    with pytest.raises(ConfigError, match="holds other weights than timm's resnet18"):
        build("vision_encoder", "timm", model="resnet18", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError):
        build("vision_encoder", "siglip", path=_llama_folder(tmp_path / "llama"))
    (tmp_path / "fake.gguf").write_bytes(b"not one")
    with pytest.raises(ConfigError, match="does not begin with GGUF"):
        build("llm", "gguf", path=str(tmp_path / "fake.gguf"))


def test_a_tower_with_missing_weights_is_refused_not_randomly_filled(tmp_path: Path) -> None:
    tower = SiglipVisionModel(SiglipVisionConfig(**TOWER))
    state = tower.state_dict()
    state.pop("encoder.layers.1.mlp.fc1.weight")
    tower.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ConfigError, match=r"1 missing .*fc1.weight"):
        build("vision_encoder", "siglip", path=str(tmp_path))
