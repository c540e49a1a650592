"""LoRA and DoRA: in every group, merged, against their formulas, and where they are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prismcap.configs.errors import ConfigError, MissingExtraError
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig, LoraConfig, StageConfig
from prismcap.data.schema import Batch, Encoded
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.lora import lora_modules
from prismcap.model.trainable import (
    finish_stage,
    load_trainable_state,
    prepare_stage,
    trainable_parameters,
    trainable_state,
    unquantized,
)

MakeConfig = Callable[..., ModelConfig]
TOWER_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
CLIP = {
    "name": "clip",
    "config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    },
}
TIMM = {"name": "timm", "model": "vit_tiny_patch16_224", "image_size": 16}


def everywhere(**options: Any) -> dict[Any, GroupConfig]:
    """Adapters on all linear layers of all groups."""
    lora = LoraConfig(rank=2, alpha=8, target_modules="all-linear", **options)
    return {group: GroupConfig(lr=1e-2, lora=lora) for group in ("vision_encoder", "connector", "llm")}


@pytest.fixture
def batch(make_sample: Callable[..., Encoded], pack: Callable[..., Batch]) -> Batch:
    samples = [make_sample("a", 1, 16, seed=1), make_sample("b", 0, 16, seed=2)]
    return pack([samples], torch.randn(1, 3, 16, 16))


def train_a_little(captioner: Captioner, batch: Batch) -> None:
    captioner.train()
    parameters = trainable_parameters(captioner)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        captioner(batch).loss_sum.backward()
        assert not [name for name, value in parameters.items() if value.grad is None]
        nn.utils.clip_grad_norm_(parameters.values(), 5.0)
        optimizer.step()
    captioner.eval()


@pytest.mark.parametrize("dora", [False, True])
def test_merged_is_unmerged_in_every_group(model_config: MakeConfig, batch: Batch, dora: bool) -> None:
    captioner = build_captioner(model_config())
    names, start = list(captioner.state_dict()), captioner.logits(batch).detach()
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    prepare_stage(captioner, everywhere(dora=dora))
    torch.testing.assert_close(captioner.logits(batch).detach(), start, atol=1e-4, rtol=1e-4)
    train_a_little(captioner, batch)
    unmerged = captioner.logits(batch).detach()
    state = {name: value.clone() for name, value in trainable_state(captioner).items()}
    assert any("lora_magnitude_vector" in name for name in state) is dora
    expected = merged_by_formula(before, state, scaling=8 / 2)
    finish_stage(captioner)
    assert list(captioner.state_dict()) == names
    torch.testing.assert_close(captioner.logits(batch).detach(), unmerged, atol=1e-4, rtol=1e-4)
    assert (unmerged - start).abs().max() > 1e-2, "a merge that is left out would be seen"
    for name, value in captioner.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
    # a run loaded again
    other = build_captioner(model_config())
    other.load_state_dict(before)
    prepare_stage(other, everywhere(dora=dora))
    load_trainable_state(other, state)
    finish_stage(other)
    assert all(torch.equal(value, captioner.state_dict()[name]) for name, value in other.state_dict().items())


def merged_by_formula(
    weights: dict[str, Tensor], state: dict[str, Tensor], scaling: float
) -> dict[str, Tensor]:
    """LoRA: W + s B A (arXiv 2106.09685, eq. 3); DoRA: m (W + s B A) / ||W + s B A||, the norm of each
    output's row (arXiv 2402.09353, eq. 5)."""
    merged = dict(weights)
    for name, a_rI in state.items():
        layer, _, rest = name.partition(".lora_A.")
        if not rest:
            continue
        weight = weights[f"{layer}.weight"] + scaling * state[f"{layer}.lora_B.default.weight"] @ a_rI
        magnitude = state.get(f"{layer}.lora_magnitude_vector.default.weight")
        if magnitude is not None:
            weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        merged[f"{layer}.weight"] = weight
    return merged


@pytest.mark.parametrize("encoder", [None, CLIP, TIMM], ids=["siglip", "clip", "timm"])
def test_towers_take_adapters_only_in_layers_that_are_read(
    model_config: MakeConfig, encoder: dict[str, Any] | None
) -> None:
    captioner = build_captioner(model_config(**({"vision_encoder": encoder} if encoder else {})))
    targets: Any = "all-linear" if encoder is TIMM else TOWER_LAYERS
    lora = LoraConfig(rank=2, target_modules=targets)
    prepare_stage(captioner, {"vision_encoder": GroupConfig(lr=1e-2, lora=lora)})
    wrapped = lora_modules(captioner)
    # of three layers the last is above hidden_states[-2]; timm's are read to the end
    assert len(wrapped) == (12 * 4 if encoder is TIMM else 2 * len(TOWER_LAYERS))
    trained = trainable_parameters(captioner)
    assert len(trained) == 2 * len(wrapped)
    captioner.train()
    captioner.encode_images(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(value.grad is not None for value in trained.values())
    assert all("lora_" in name for name in trained)


def test_all_linear_leaves_the_head_alone(model_config: MakeConfig) -> None:
    captioner = build_captioner(model_config())
    prepare_stage(captioner, everywhere())
    wrapped = set(lora_modules(captioner))
    linear = {
        name.removesuffix(".base_layer")
        for name, module in captioner.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }
    left = linear - wrapped
    assert "llm.lm_head" in left
    unread = ("vision_encoder.tower.encoder.layers.2.", "vision_encoder.tower.head.")
    assert all(name.startswith(unread) for name in left - {"llm.lm_head"})
    assert wrapped >= {"connector.layers.0", "connector.layers.2"}


def test_patterns_choose_the_layers_that_get_adapters(model_config: MakeConfig) -> None:
    captioner = build_captioner(model_config())
    lora = LoraConfig(rank=2, target_modules=("q_proj", "v_proj"))
    prepare_stage(captioner, {"llm": GroupConfig(lr=1e-2, lora=lora, only=("model.layers.1.*",))})
    assert set(lora_modules(captioner)) == {f"llm.model.layers.1.self_attn.{name}_proj" for name in "qv"}
    finish_stage(captioner)
    with pytest.raises(ConfigError, match=r"train\.llm\.only: 'model\.layers\.7\.\*' matches none"):
        prepare_stage(captioner, {"llm": GroupConfig(lr=1e-2, lora=lora, only=("model.layers.7.*",))})


def test_names_match_whole_parts(model_config: MakeConfig) -> None:
    """`layers.0` of the connector is not to match `…layers.0` elsewhere, nor `proj` to match `q_proj`."""
    captioner = build_captioner(model_config())
    with pytest.raises(ConfigError, match=r"no layer is called \['proj'\].*all-linear"):
        prepare_stage(captioner, {"llm": GroupConfig(lr=1e-2, lora=LoraConfig(target_modules=("proj",)))})
    lora = LoraConfig(rank=2, target_modules=("layers.0",))
    prepare_stage(captioner, {"connector": GroupConfig(lr=1e-2, lora=lora)})
    assert set(lora_modules(captioner)) == {"connector.layers.0"}


def test_unread_and_tied_layers_are_refused(model_config: MakeConfig) -> None:
    captioner = build_captioner(model_config())
    head = LoraConfig(rank=2, target_modules=("head.mlp.fc1",))
    with pytest.raises(ConfigError, match=r"train\.vision_encoder\.lora\.target_modules: .* reads none"):
        prepare_stage(captioner, {"vision_encoder": GroupConfig(lr=1e-2, lora=head)})
    lora = LoraConfig(rank=2, target_modules=("q_proj", "lm_head"))
    prepare_stage(captioner, {"llm": GroupConfig(lr=1e-2, lora=lora)})
    assert "llm.lm_head" in lora_modules(captioner)
    llama = captioner.llm.config.to_dict() | {"model_type": "llama", "tie_word_embeddings": True}
    tied = build_captioner(model_config(llm={"name": "random", "config": llama}))
    with pytest.raises(ConfigError, match=r"train\.llm\.lora\.target_modules: lm_head is tied"):
        prepare_stage(tied, {"llm": GroupConfig(lr=1e-2, lora=lora)})
    assert not lora_modules(tied)


def test_quantizing_is_refused_where_it_cannot_be(
    model_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    qlora = {"llm": GroupConfig(lr=1e-2, lora=LoraConfig(quantize="nf4"))}
    captioner = build_captioner(model_config())
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"train\.llm\.lora\.quantize: nf4 needs a GPU"):
            prepare_stage(captioner, qlora)  # type: ignore[arg-type]
    monkeypatch.setattr("prismcap.model.quantize.nf4_device", lambda _: torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"lora\.quantize: nf4 needs .*bitsandbytes.*\[gpu\]"):
        prepare_stage(captioner, qlora)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dora and quantize together"):
        LoraConfig(dora=True, quantize="nf4")


def test_a_stage_that_is_looked_at_leaves_an_llm_to_be_quantized_as_it_was(model_config: MakeConfig) -> None:
    """As the doctor does, before the first stage: on a CPU too."""
    train: dict[Any, GroupConfig] = {
        "llm": GroupConfig(lr=1e-2, lora=LoraConfig(rank=2, quantize="nf4")),
        "connector": GroupConfig(lr=1e-3, layer_lr_decay=0.5),
    }
    looked_at = unquantized(train)
    assert looked_at["connector"] == train["connector"] and looked_at["llm"].lr == 1e-2
    assert looked_at["llm"].lora == LoraConfig(rank=2)
    captioner = build_captioner(model_config())
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    prepare_stage(captioner, looked_at)
    assert lora_modules(captioner)
    finish_stage(captioner)
    assert all(torch.equal(value, before[name]) for name, value in captioner.state_dict().items())


@pytest.mark.parametrize(
    ("train", "zero_stage", "expected"),
    [
        ({"llm": {"dora": True}}, 2, None),
        ({"llm": {"dora": True}}, 3, r"train\.llm\.lora\.dora does not work with zero_stage: 3"),
        ({"llm": {"quantize": "nf4"}}, 2, None),
        ({"llm": {"quantize": "nf4"}}, 3, r"train\.llm\.lora\.quantize does not work with zero_stage: 3"),
        ({"connector": {"quantize": "nf4"}}, 2, r"train\.connector\.lora\.quantize: only the llm"),
        ({"llm": {}}, 3, None),
    ],
)
def test_what_does_not_go_together(train: dict[str, Any], zero_stage: int, expected: str | None) -> None:
    values = {
        "train": {group: {"lr": 1e-2, "lora": lora} for group, lora in train.items()},
        "data": {"mix": [{"name": "llava_json", "path": "x.json"}]},
        "template": {"name": "plain"},
        "schedule": {"max_steps": 1},
        "engine": {"name": "deepspeed", "zero_stage": zero_stage},
    }
    if expected is None:
        assert StageConfig.model_validate(values).train.keys() == train.keys()
    else:
        with pytest.raises(ValueError, match=expected):
            StageConfig.model_validate(values)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "whole"),
        ({"only": ["projection.*"]}, "only projection.*"),
        ({"lora": {"rank": 8}}, "LoRA of rank 8"),
        ({"lora": {"rank": 8, "dora": True}, "only": ["a.*", "b"]}, "DoRA of rank 8, only a.*, b"),
        ({"lora": {"quantize": "nf4"}}, "QLoRA of rank 16"),
    ],
)
def test_what_trains_in_words(config: dict[str, Any], expected: str) -> None:
    assert GroupConfig.model_validate({"lr": 1e-2} | config).how == expected
