"""Full-size models without weights: built, run forward and backward, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch._subclasses.fake_tensor import FakeTensor

from prismcap.configs.schema.run import RunConfig
from prismcap.model.trainable import group_of
from prismcap.train.plan.memory import StageMemory, shape_captioner
from prismcap.train.plan.static import Sharding

# Published sizes. LLaVA-1.5: CLIP ViT-L/14-336's tower without its projection, Vicuna v1.5 (LLaMA-2); the
# connector is 1024 x d + d + d x d + d. SmolLM2-360M and SigLIP-SO400M: their model cards' safetensors.
VICUNA = {"7b": 6_738_415_616, "13b": 13_015_864_320}
CONNECTOR = {"7b": 20_979_712, "13b": 31_467_520}
CLIP_L_336 = 303_507_456
SMOLLM2_360M = 361_821_120
SIGLIP_SO400M = 428_225_600


def counts(config: RunConfig, stage: str) -> tuple[dict[str, int], dict[str, int]]:
    """Weights that are there and that train, by group."""
    captioner, _ = shape_captioner(config.model, config.stages[stage])
    there: dict[str, int] = {}
    trained: dict[str, int] = {}
    for name, value in captioner.named_parameters():
        assert isinstance(value, FakeTensor)
        there[group_of(name)] = there.get(group_of(name), 0) + value.numel()
        if value.requires_grad:
            trained[group_of(name)] = trained.get(group_of(name), 0) + value.numel()
    return there, trained


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_llava_counts_are_the_published_ones(llava: Callable[[str], RunConfig], size: str) -> None:
    there, trained = counts(llava(size), "align")
    assert there == {"llm": VICUNA[size], "connector": CONNECTOR[size], "vision_encoder": CLIP_L_336}
    assert trained == {"connector": CONNECTOR[size]}
    _, trained = counts(llava(size), "instruct")
    assert trained == {"connector": CONNECTOR[size], "llm": VICUNA[size]}


def test_the_recipe_counts_are_the_published_ones(recipe: RunConfig) -> None:
    there, trained = counts(recipe, "instruct")
    assert there["vision_encoder"] == SIGLIP_SO400M and there["llm"] == SMOLLM2_360M
    assert trained == {"connector": there["connector"], "llm": SMOLLM2_360M}


@pytest.mark.parametrize("stage", ["align", "instruct"])
@pytest.mark.parametrize("name", ["siglip_smollm2", "llava_7b"])
def test_forward_and_backward_of_the_real_configuration(
    recipe: RunConfig, llava: Callable[[str], RunConfig], name: str, stage: str
) -> None:
    config = recipe if name == "siglip_smollm2" else llava("7b")
    memory = StageMemory(config.model, config.stages[stage]).of(Sharding(None), num_rows=1)
    assert all(size > 0 for part, size in memory.parts().items() if part != "communication")


def test_a_backward_pass_of_shapes_reaches_what_trains(llava: Callable[[str], RunConfig]) -> None:
    config = llava("7b")
    shapes = StageMemory(config.model, config.stages["align"])
    reached: list[str] = []
    for name, value in shapes.captioner().named_parameters():
        if value.requires_grad:
            value.register_post_accumulate_grad_hook(lambda _, name=name: reached.append(name))
    shapes.of(Sharding(None), num_rows=1)
    assert sorted(reached) == sorted(
        f"connector.layers.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
    )


def test_bf16_weights_halve_what_they_should(llava: Callable[[str], Any]) -> None:
    stage = llava("7b").stages["instruct"]
    memory = StageMemory(llava("7b").model, stage)
    plain, sharded = memory.of(Sharding(0)), memory.of(Sharding(1, num_gpus=8))
    assert sharded.static.weights == pytest.approx(plain.static.weights / 2, rel=1e-3)
