"""Full-size models without weights: built, run forward and backward, counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch._subclasses.fake_tensor import FakeTensor

from prismcap.configs.load import load_config, presets
from prismcap.model.kernels import decoder_layers
from prismcap.model.trainable import GROUPS, group_of
from prismcap.train.plan import activations
from prismcap.train.plan.activations import LAYERS_RUN, LLM
from prismcap.train.plan.memory import StageMemory
from prismcap.train.plan.static import Sharding

GetMemory = Callable[[str, str], StageMemory]
# Published sizes. LLaVA-1.5: CLIP ViT-L/14-336's tower without its projection, Vicuna v1.5 (LLaMA-2); the
# connector is 1024 x d + d + d x d + d. SmolLM2-360M and SigLIP-SO400M: the safetensors of their model cards.
PUBLISHED = {
    "llava_7b": {"vision_encoder": 303_507_456, "connector": 20_979_712, "llm": 6_738_415_616},
    "llava_13b": {"vision_encoder": 303_507_456, "connector": 31_467_520, "llm": 13_015_864_320},
    "recipes/siglip_smollm2": {"vision_encoder": 428_225_600, "connector": 2_029_440, "llm": 361_821_120},
}
TRAINED = {"align": ("connector",), "instruct": ("connector", "llm")}
RECIPES = [name for name in presets() if name.startswith("recipes/")]
STAGES = [(name, stage) for name in RECIPES for stage in load_config(name).stages]


def test_every_shipped_recipe_is_sized(sized_recipes: set[str]) -> None:
    assert sized_recipes == set(RECIPES) and STAGES, "HUB of conftest.py: sizes of what a recipe downloads"


@pytest.mark.parametrize("stage", TRAINED)
@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(stage_memory: GetMemory, name: str, stage: str) -> None:
    there, trained = dict.fromkeys(GROUPS, 0), dict.fromkeys(GROUPS, 0)
    for key, value in stage_memory(name, stage).captioner.named_parameters():
        assert isinstance(value, FakeTensor)
        there[group_of(key)] += value.numel()
        trained[group_of(key)] += value.numel() if value.requires_grad else 0
    assert there == PUBLISHED[name]
    assert {group for group, count in trained.items() if count} == set(TRAINED[stage])
    assert all(trained[group] == PUBLISHED[name][group] for group in TRAINED[stage])


def passed(memory: StageMemory) -> tuple[set[str], set[str]]:
    """Names of the parameters that train, and of those that a forward and backward pass reaches."""
    reached: set[str] = set()
    trained = {key: value for key, value in memory.captioner.named_parameters() if value.requires_grad}

    def note(key: str) -> Callable[..., None]:
        return lambda _: reached.add(key)

    handles = [value.register_post_accumulate_grad_hook(note(key)) for key, value in trained.items()]
    found = memory.of(Sharding(None))
    for handle in handles:
        handle.remove()
    assert found.passing[LLM] > 0
    return set(trained), reached


@pytest.mark.parametrize(("name", "stage"), [*STAGES, ("llava_7b", "align"), ("llava_7b", "instruct")])
def test_forward_and_backward_reach_what_trains(stage_memory: GetMemory, name: str, stage: str) -> None:
    trained, reached = passed(stage_memory(name, stage))
    # of the LLM's layers, which are all alike, the first few are run
    assert reached and all(layer_of(key) >= LAYERS_RUN[1] for key in trained - reached)


def layer_of(key: str) -> int:
    return int(key.split("layers.")[1].split(".")[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_all_layers_of_a_recipe_are_run_and_reached(
    stage_memory: GetMemory, monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    memory = stage_memory(name, stage)
    layers = decoder_layers(memory.captioner.llm)
    assert layers
    runs: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, number=number: runs.append(number))
        for number, layer in enumerate(layers)
    ]
    monkeypatch.setattr(activations, "LAYERS_RUN", (2, len(layers)))
    trained, reached = passed(memory)
    for handle in handles:
        handle.remove()
    assert set(runs) == set(range(len(layers)))
    assert reached == trained


@pytest.mark.slow
def test_bf16_weights_take_half(stage_memory: GetMemory) -> None:
    memory = stage_memory("recipes/siglip_smollm2", "instruct")
    plain, sharded = memory.of(Sharding(0)), memory.of(Sharding(1, num_gpus=8))
    assert sharded.static.weights == pytest.approx(plain.static.weights / 2, rel=1e-3)
    assert sharded.passing.total() < plain.passing.total()
