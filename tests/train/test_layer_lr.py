"""Layer-wise learning rates: the depth of a name, the optimiser's groups, and a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import OptimizerConfig
from prismcap.data.schema import Batch
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.trainable import prepare_stage, trainable_parameters
from prismcap.train.distributed import Ranks
from prismcap.train.layer_depth import layer_of, layers_below_top
from prismcap.train.optim import build_optimizer, learning_rates, parameter_groups, set_learning_rates
from prismcap.train.run import build_engine, stage_loader

Make = Callable[..., RunConfig]
TRAIN = "stages.instruct.train={connector: {lr: 0.005}, %s}"
TOWER = "vision_encoder: {lr: 0.01, weight_decay: 0.1, layer_lr_decay: 0.5%s}"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("tower.encoder.layers.11.self_attn.q_proj.weight", (11,)),
        ("qformer.encoder.layer.3.attention.query.weight", (3,)),
        ("model.layers.3.mlp.experts.7.up_proj.weight", (3,)),
        ("model.layers.3.self_attn.q_proj.lora_A.default.weight", (3,)),
        ("transformer.h.4.ln_1.weight", (4,)),
        ("layers.2.weight", (2,)),
        ("model.blocks.5.norm1.weight", (5,)),
        ("model.blocks.2.1.conv_pw.weight", (2, 1)),
        ("model.stages.1.blocks.0.conv_dw.weight", (1, 0)),
        ("model.layer3.0.conv1.weight", (3, 0)),
        ("model.stages.1.downsample.0.weight", (1,)),
        ("tower.embeddings.position_embedding.weight", None),
        ("model.player.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_the_layer_of_a_name(name: str, layer: tuple[int, ...] | None) -> None:
    assert layer_of(name) == layer


def names_of(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def below(names: list[str]) -> dict[str, int]:
    return layers_below_top(names, names, "x")


def test_depths_in_models_of_two_libraries() -> None:
    vit = below(names_of(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)))
    assert vit["cls_token"] == vit["pos_embed"] == vit["patch_embed.proj.weight"] == 12
    assert [vit[f"blocks.{i}.attn.qkv.weight"] for i in range(12)] == list(range(11, -1, -1))
    assert vit["norm.weight"] == 0
    lite = below(names_of(timm.create_model("tf_efficientnet_lite0", num_classes=0)))
    # 16 blocks in 7 stages
    assert lite["conv_stem.weight"] == lite["bn1.weight"] == 16
    assert (lite["blocks.0.0.conv_dw.weight"], lite["blocks.6.0.conv_dw.weight"]) == (15, 0)
    assert lite["conv_head.weight"] == lite["bn2.bias"] == 0
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 4}
    clip = below(names_of(CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4))))
    assert {name.rpartition("pre_layrnorm")[1]: depth for name, depth in clip.items() if "pre_" in name} == {
        "pre_layrnorm": 4
    }
    assert {depth for name, depth in clip.items() if "embeddings" in name} == {4}
    assert {depth for name, depth in clip.items() if ".layers.1." in name} == {2}
    assert {depth for name, depth in clip.items() if "post_layernorm" in name} == {0}


def test_depth_counts_from_the_highest_layer_that_trains() -> None:
    names = ["stem.weight", *(f"layers.{i}.weight" for i in range(4)), "norm.weight"]
    found = layers_below_top(names, ["layers.0.weight", "layers.2.weight"], "x")
    assert (found["layers.2.weight"], found["layers.0.weight"], found["stem.weight"]) == (0, 2, 3)
    with pytest.raises(
        ConfigError, match=r"train\.connector\.layer_lr_decay: .*no numbered layers \(linear\."
    ):
        layers_below_top(["linear.weight"], ["linear.weight"], "train.connector.layer_lr_decay")


def ready(config: RunConfig) -> Captioner:
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages["instruct"].train, seed=config.seed)
    return captioner


# with AdamW's own, rounding decides where a weight goes whose gradient is zero but for rounding (k_proj.bias)
EPS = 1e-3
# three layers, of which the tower runs two
DEEP = "model.vision_encoder.config.num_hidden_layers=3"


def test_every_parameter_has_its_lr(make_config: Make) -> None:
    llm = "llm: {lr: 0.004, layer_lr_decay: 0.9, lora: {rank: 2}}"
    config = make_config(TRAIN % f"{TOWER % ''}, {llm}", DEEP)
    captioner = ready(config)
    groups = parameter_groups(captioner.named_parameters(), config.stages["instruct"].train)
    found = {
        name: (group["lr"], group["initial_lr"]) for group in groups for name in group["parameter_names"]
    }
    assert found.keys() == trainable_parameters(captioner).keys()
    for name, rates in found.items():
        expected = 0.005
        if name.startswith("vision_encoder"):
            expected = 0.01 * (0.5 if ".layers.0." in name else 1.0 if ".layers.1." in name else 0.25)
        elif name.startswith("llm"):
            expected = 0.004 * (0.9 if ".layers.0." in name else 1.0)
        assert rates == (pytest.approx(expected), pytest.approx(expected)), name
    for order in (groups, groups[::-1]):
        optimizer = build_optimizer(order, OptimizerConfig())
        set_learning_rates(optimizer, 0.5)
        assert min(group["lr"] for group in optimizer.param_groups) == pytest.approx(0.01 * 0.25 / 2)
        # what is logged: one rate for each group, that of its highest layer
        assert learning_rates(optimizer) == {"vision_encoder": 0.005, "connector": 0.0025, "llm": 0.002}


def batches_of(config: RunConfig, captioner: Captioner, num_steps: int) -> list[list[Batch]]:
    loader = stage_loader(config, "instruct", captioner, Ranks())
    return [list(loader.load(step).micro_batches) for step in range(num_steps)]


def test_the_engine_is_a_plain_loop_with_one_lr_for_each_parameter(make_config: Make) -> None:
    only = ', only: ["tower.encoder.*", "*.patch_embedding.*"]'
    constant = ["stages.instruct.schedule={name: constant, warmup_ratio: 0, max_steps: 4}"]
    constant.append(f"stages.instruct.optimizer={{clip_norm: .inf, eps: {EPS}}}")
    config = make_config(TRAIN % (TOWER % only), DEEP, *constant)
    ours, plain = ready(config), ready(config)
    engine = build_engine(config, "instruct", ours, 4, Ranks())
    steps = batches_of(config, ours, 4)
    for batches in steps:
        engine.train_step(batches)
    parameters = trainable_parameters(plain)
    optimizers = {name: plain_adamw(name, value) for name, value in parameters.items()}
    plain.train()
    for batches in steps:
        outputs = [plain(batch) for batch in batches]
        count = sum(output.num_target_tokens for output in outputs)
        torch.stack([output.loss_sum for output in outputs]).sum().div(count).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    found = trainable_parameters(ours)
    assert found.keys() == parameters.keys() and len(found) > 30
    for name, value in parameters.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)


def plain_adamw(name: str, value: torch.nn.Parameter) -> torch.optim.AdamW:
    """Its lr by hand, of the tower's two layers and what lies below them."""
    if name.startswith("connector"):
        return torch.optim.AdamW([value], lr=0.005, weight_decay=0.0, eps=EPS)
    lr = 0.005 if ".layers.0." in name else 0.01 if ".layers.1." in name else 0.0025
    return torch.optim.AdamW([value], lr=lr, weight_decay=0.1 if value.ndim > 1 else 0.0, eps=EPS)
