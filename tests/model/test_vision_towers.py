"""Towers of transformers: their features are the hidden states of transformers' own classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2VisionModel,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_options
from prismcap.configs.schema.base import Component, Section
from prismcap.model.build import build_captioner
from prismcap.model.contracts import Connector
from prismcap.model.hf import custom
from prismcap.model.hf.modeling_prismcap import TowerVision
from prismcap.model.huggingface import config_values, load_pretrained
from prismcap.model.shapes import shapes_only

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
VIT = SIZES | {"intermediate_size": 32}
DINO = SIZES | {"mlp_ratio": 2}
NUM_REGISTERS = 3
FAMILIES: dict[str, tuple[Any, dict[str, Any], int]] = {
    # the class of transformers, its config, the tokens before the patches
    "siglip": (SiglipVisionModel, VIT, 0),
    "clip": (CLIPVisionModel, VIT, 1),
    "dinov2": (Dinov2Model, DINO, 1),
    "dinov2_registers": (
        Dinov2WithRegistersModel,
        DINO | {"num_register_tokens": NUM_REGISTERS},
        1 + NUM_REGISTERS,
    ),
    "eva_vit_g": (Blip2VisionModel, VIT, 1),
}
WITH_CLASS_TOKEN = [name for name in FAMILIES if name != "siglip"]


def build(name: str, **options: Any) -> Any:
    module, parsed = component_options("vision_encoder", Component(name=name, **options))
    return module.build(parsed)


def randomise(module: nn.Module) -> None:
    """Everywhere: norms, class tokens and biases that start at 0 or 1 would hide a mix-up."""
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn_like(value) * 0.3 + 0.1)


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """A tower of a family with random weights, and the folder where it is saved."""

    def make(name: str) -> tuple[Any, str]:
        model_class, config, _ = FAMILIES[name]
        tower = model_class(model_class.config_class(**config)).eval()
        randomise(tower)
        tower.save_pretrained(tmp_path / name)
        return tower, str(tmp_path / name)

    return make


def hidden_states(tower: Any, tiles: Tensor, **options: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        states: tuple[Tensor, ...] = tower(tiles, output_hidden_states=True, **options).hidden_states
    assert len(states) == SIZES["num_hidden_layers"] + 1
    return states


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, -1, -2])
def test_features_are_hidden_states(name: str, layer: int, saved: Any) -> None:
    tower, path = saved(name)
    encoder = build(name, path=path, layer=layer, post_layernorm=False)
    tiles = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder(tiles), hidden_states(tower, tiles)[layer][:, FAMILIES[name][2] :])


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_joined_over_channels_in_the_order_given(name: str, saved: Any) -> None:
    tower, path = saved(name)
    encoder = build(name, path=path, layer=[-2, 0], post_layernorm=False)
    tiles = torch.randn(2, 3, 16, 16)
    states = hidden_states(tower, tiles)
    expected = torch.cat([states[-2], states[0]], dim=2)[:, FAMILIES[name][2] :]
    assert encoder.hidden_size == 32
    torch.testing.assert_close(encoder(tiles), expected)
    unread = {key.split(".")[3] for key in encoder.unused_parameters() if ".encoder." in key}
    assert unread == {"2"}, "the last of three blocks is above hidden_states[-2]"


@pytest.mark.parametrize("name", FAMILIES)
def test_post_layernorm_is_that_of_the_last_hidden_state_alone(name: str, saved: Any) -> None:
    tower, path = saved(name)
    encoder = build(name, path=path, layer=[1, -1], post_layernorm=True)
    tiles = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        last = tower(tiles).last_hidden_state
        if name == "clip":  # the one class that norms only what it pools
            last = tower.post_layernorm(last)
    expected = torch.cat([hidden_states(tower, tiles)[1], last], dim=2)[:, FAMILIES[name][2] :]
    torch.testing.assert_close(encoder(tiles), expected)
    encoder(tiles).sum().backward()
    unread = {key for key, value in encoder.named_parameters() if value.grad is None}
    assert unread == encoder.unused_parameters()


@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_a_kept_class_token_stands_before_the_patches(name: str, saved: Any) -> None:
    tower, path = saved(name)
    options = {"layer": -1, "post_layernorm": False}
    encoder = build(name, path=path, class_token="keep", **options)
    tiles = torch.randn(2, 3, 16, 16)
    state = hidden_states(tower, tiles)[-1]
    expected = torch.cat([state[:, :1], state[:, FAMILIES[name][2] :]], dim=1)
    assert (encoder.num_class_tokens, encoder.num_patches, encoder.features_per_tile) == (1, 16, 17)
    torch.testing.assert_close(encoder(tiles), expected)
    torch.testing.assert_close(build(name, path=path, **options)(tiles), expected[:, 1:])


def test_options_that_a_tower_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="class_token"):
        build("siglip", config=VIT, class_token="keep")
    with pytest.raises(ConfigError, match=r"post_layernorm: true .* set layer: -1"):
        build("clip", config=VIT, layer=[0, -2], post_layernorm=True)
    with pytest.raises(ConfigError, match="hidden_states 0 to 3"):
        build("clip", config=VIT, layer=[-1, 4])
    with pytest.raises(ConfigError, match="layer"):
        build("clip", config=VIT, layer=[])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [24, 8])
def test_positions_are_interpolated_once_as_transformers_does_in_every_batch(
    name: str, size: int, saved: Any, tmp_path: Path
) -> None:
    tower, path = saved(name)
    encoder = build(name, path=path, image_size=size, layer=-1, post_layernorm=False)
    assert encoder.image_spec.size_px == size and encoder.grid == (size // 4, size // 4)
    tiles = torch.randn(2, 3, size, size)
    # the DINOv2 classes have no such option, and always do it
    option = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
    expected = hidden_states(tower, tiles, **option)[-1][:, FAMILIES[name][2] :]
    torch.testing.assert_close(encoder(tiles), expected)
    # config and weights belong together: what is saved is a tower of the new size
    encoder.tower.save_pretrained(tmp_path / "resized")
    torch.testing.assert_close(
        build(name, path=str(tmp_path / "resized"), layer=-1, post_layernorm=False)(tiles), expected
    )


def test_an_image_size_is_named_that_fits_the_patches() -> None:
    with pytest.raises(ConfigError, match="not divisible by the tower's 4 px patches: take 20 or 24"):
        build("clip", config=VIT, image_size=22)
    # a checkpoint's own size may leave a margin, as SigLIP's 384 px of 14 px patches do
    assert build("siglip", config=VIT | {"image_size": 18}, image_size=18).grid == (4, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_runs_blocks_again_and_changes_no_gradient(name: str, saved: Any) -> None:
    _, path = saved(name)
    encoder = build(name, path=path, layer=-1).train()
    calls: list[nn.Module] = []
    for module in encoder.modules():
        if type(module).__name__.endswith("MLP"):
            # before it runs: recomputing stops within the last layer, as soon as nothing more is needed
            module.register_forward_pre_hook(lambda module, *_: calls.append(module))
    tiles = torch.randn(2, 3, 16, 16)
    gradients = []
    for enabled, times in ((False, 1), (True, 2), (False, 1)):
        encoder.set_gradient_checkpointing(enabled)
        encoder.zero_grad()
        calls.clear()
        encoder(tiles).square().sum().backward()
        assert len(calls) == times * SIZES["num_hidden_layers"]
        gradients.append({key: value.grad for key, value in encoder.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


def test_a_tower_is_found_in_a_whole_blip2(tmp_path: Path) -> None:
    vision = VIT | {"initializer_range": 0.3}
    text = {"model_type": "opt", "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 30, "word_embed_proj_dim": 16}
    qformer = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    qformer |= {"encoder_hidden_size": 16, "vocab_size": 30}
    config = Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text)
    whole = Blip2ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    tiles = torch.randn(2, 3, 16, 16)
    expected = whole.vision_model(tiles).last_hidden_state
    torch.testing.assert_close(build("eva_vit_g", path=str(tmp_path), class_token="keep")(tiles), expected)
    assert expected.std() > 0.1


def test_siglip2_of_fixed_resolution_is_a_siglip(tmp_path: Path) -> None:
    """Their config.json names model type siglip, for the whole and for the tower; the text part is larger."""
    text = {key: value for key, value in VIT.items() if key not in ("image_size", "patch_size")}
    whole = SiglipModel(SiglipConfig(vision_config=VIT, text_config=text | {"vocab_size": 50})).eval()
    whole.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "siglip"
    tiles = torch.randn(2, 3, 16, 16)
    encoder = build("siglip", path=str(tmp_path), layer=-1, post_layernorm=True)
    torch.testing.assert_close(encoder(tiles), whole.vision_model(tiles).last_hidden_state)


def test_checkpoints_of_another_type_are_refused(saved: Any, tmp_path: Path) -> None:
    """transformers would load the first with a warning, as a DINOv2 without its registers."""
    _, path = saved("dinov2_registers")
    with pytest.raises(ConfigError, match=r"holds a dinov2_with_registers, where dinov2 is expected"):
        build("dinov2", path=path)
    naflex = {key: value for key, value in VIT.items() if key != "image_size"} | {"num_patches": 16}
    Siglip2VisionModel(Siglip2VisionConfig(**naflex)).save_pretrained(tmp_path / "naflex")
    with pytest.raises(ConfigError, match="holds a siglip2_vision_model"):
        build("siglip", path=str(tmp_path / "naflex"))


def test_the_tower_of_blip2_has_its_published_shape() -> None:
    with shapes_only(), torch.no_grad():
        encoder = build("eva_vit_g", config={}, class_token="keep")
        features = encoder(torch.zeros(1, 3, 224, 224))
        resized = build("eva_vit_g", config={}, image_size=364)
    assert features.shape == (1, 257, 1408) and len(encoder.tower.encoder.layers) == 39
    assert resized.grid == (26, 26) and resized.tower.embeddings.position_embedding.shape == (1, 677, 1408)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("class_token", ["drop", "keep"])
def test_the_export_has_the_same_features(name: str, class_token: str, saved: Any) -> None:
    _, path = saved(name)
    options: dict[str, Any] = {"layer": [-1, 1], "post_layernorm": True, "image_size": 20}
    if name != "siglip":
        options["class_token"] = class_token
    encoder = build(name, path=path, **options)
    # through JSON, as in an export
    exported = TowerVision(json.loads(json.dumps(custom._vision(encoder)))).eval()
    exported.load_state_dict(encoder.state_dict())
    tiles = torch.randn(2, 3, 20, 20)
    torch.testing.assert_close(exported(tiles), encoder(tiles))


class MeanConnector(Connector):
    """One token of a tile: the mean of all its features."""

    takes_class_tokens = True
    num_tokens = 1

    def __init__(self, width: int, llm_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, llm_width)
        self.seen: list[int] = []

    def forward(self, features_PKD: Tensor) -> Tensor:
        self.seen.append(features_PKD.shape[1])
        tokens_PNH: Tensor = self.linear(features_PKD.mean(1, keepdim=True))
        return tokens_PNH


class MeanOptions(Section):
    match_embedding_std: bool = True


def test_only_connectors_that_see_all_features_take_class_tokens(
    model_config: Any, make_sample: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = {"name": "clip", "config": VIT, "class_token": "keep"}
    for name in ("linear", "mlp", "patch_concat"):
        config = model_config(vision_encoder=keep, connector={"name": name})
        with pytest.raises(
            ConfigError, match=rf"run.yaml: model.vision_encoder.class_token.*{name}.*Set class_token: drop"
        ):
            build_captioner(config, where="run.yaml")
    module: Any = ModuleType("mine.mean")
    module.Options = MeanOptions
    module.build = lambda _options, width, _grid, llm_width: MeanConnector(width, llm_width)
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))
    monkeypatch.setitem(sys.modules, "mine.mean", module)
    captioner = build_captioner(model_config(vision_encoder=keep, connector={"name": "mine.mean"}))
    captioner.connector.seen.clear()
    captioner(pack([[make_sample("a", 1, 1)]], tiles=torch.randn(1, 3, 16, 16)))
    captioner(pack([[make_sample("b", 0, 1)]]))  # without a picture: the blank one
    assert captioner.connector.seen == [17, 17]


def test_a_directory_goes_before_the_published_sizes_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "google/siglip-so400m-patch14-384"
    monkeypatch.chdir(tmp_path)
    with shapes_only():
        assert config_values(name)["hidden_size"] == 1152
        (tmp_path / name).mkdir(parents=True)
        SiglipVisionConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2).save_pretrained(name)
        assert config_values(name)["hidden_size"] == 24
        assert load_pretrained(SiglipVisionModel, name).config.hidden_size == 24
