"""Full-size models without weights: built, run forward and backward, counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch._subclasses.fake_tensor import FakeTensor

from prismcap.configs.load import load_config
from prismcap.model.kernels import decoder_layers
from prismcap.model.sizes import published_sizes
from prismcap.model.trainable import GROUPS, group_of
from prismcap.train.plan import activations
from prismcap.train.plan.activations import LAYERS_RUN, LLM
from prismcap.train.plan.memory import StageMemory
from prismcap.train.plan.recipes import recipe_names
from prismcap.train.plan.static import Sharding

GetMemory = Callable[[str, str], StageMemory]
# Published numbers of weights. Towers without the text side: CLIP ViT-L/14 as LLaVA counts it at 336 px, and
# 320 positions less at 224; EVA ViT-g as LAVIS counts it; SigLIP-SO400M and LLMs as the safetensors of
# their model cards. Vicuna v0 has one token more than LLaMA.
CLIP_336, SIGLIP, EVA = 303_507_456, 428_225_600, 985_952_256
CLIP_224 = CLIP_336 - 320 * 1024
LLAMA_7B, LLAMA_13B = 6_738_415_616, 13_015_864_320
INTERNLM2_2B, INTERNLM2_7B, PHI_2 = 1_889_110_016, 7_737_708_544, 2_779_683_840


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def two_layers(width: int, llm: int) -> int:
    return linear(width, llm) + linear(llm, llm)


def adapters(rank: int, layers: int, *shapes: tuple[int, int]) -> int:
    """LoRA of these layers, each (inputs, outputs), in every one of the LLM's layers."""
    return layers * rank * sum(inputs + outputs for inputs, outputs in shapes)


def llama_layer(width: int, key_value: int, mlp: int) -> list[tuple[int, int]]:
    """Its seven linear layers: q, k, v, o, gate, up, down."""
    attention = [(width, width), (width, key_value), (width, key_value), (width, width)]
    return [*attention, (width, mlp), (width, mlp), (mlp, width)]


# of mPLUG-Owl's layer: three norms, attention, the gated MLP with its own norm
OWL_LAYER = 3 * 2 * 1024 + 4 * linear(1024, 1024) + 2 * linear(1024, 2816) + 2 * 2816 + linear(2816, 1024)
OWL = 6 * OWL_LAYER + 64 * 1024 + linear(1024, 4096) + 4096
VIT_BLOCK = 2 * 2 * 1024 + 4 * linear(1024, 1024) + linear(1024, 4096) + linear(4096, 1024)
QLORA_2B = adapters(512, 24, *llama_layer(2048, 1024, 8192))
QLORA_7B = adapters(512, 32, *llama_layer(4096, 1024, 14336))

Counts = dict[str, int]
# What each stage trains. LLaVA-1.5-7B's connector is published as 20,979,712, MiniGPT-4-7B's layer as 3.15M,
# LoRA of rank 8 on LLaMA-7B's q and v as 4,194,304; the others follow from the published shapes.
TRAINED: dict[str, dict[str, Counts]] = {
    "siglip_smollm2": {
        "align": {"connector": two_layers(1152, 960)},
        "instruct": {"connector": 2_029_440, "llm": 361_821_120},
    },
    "llava_v1_7b": {
        "align": {"connector": linear(1024, 4096)},
        "instruct": {"connector": 4_198_400, "llm": LLAMA_7B},
    },
    "llava_v1_13b": {
        "align": {"connector": linear(1024, 5120)},
        "instruct": {"connector": 5_248_000, "llm": LLAMA_13B},
    },
    "llava_v1_7b_scienceqa": {
        "align": {"connector": 4_198_400},
        "instruct": {"connector": 4_198_400, "llm": LLAMA_7B},
    },
    "llava15_7b": {
        "align": {"connector": 20_979_712},
        "instruct": {"connector": two_layers(1024, 4096), "llm": LLAMA_7B},
    },
    "llava15_13b": {
        "align": {"connector": 31_467_520},
        "instruct": {"connector": two_layers(1024, 5120), "llm": LLAMA_13B},
    },
    "llava15_7b_lora": {
        "align": {"connector": 20_979_712},
        "instruct": {"connector": 20_979_712, "llm": adapters(128, 32, *llama_layer(4096, 4096, 11008))},
    },
    # and the newline, which the first stage has in its group and never shows
    "llava15_7b_hd": {
        "align": {"connector": 20_979_712 + 4096},
        "instruct": {"connector": 20_979_712 + 4096, "llm": LLAMA_7B},
    },
    "minigpt4_7b": {stage: {"connector": 3_149_824} for stage in ("align", "instruct")},
    "minigpt4_13b": {stage: {"connector": linear(768, 5120)} for stage in ("align", "instruct")},
    "minigpt4_llama2_7b": {stage: {"connector": linear(4 * 1408, 4096)} for stage in ("align", "instruct")},
    "minigpt4_7b_three_layers": {
        stage: {"connector": linear(768, 4096) + 2 * linear(4096, 4096)} for stage in ("align", "instruct")
    },
    "minigpt4_7b_no_qformer": {stage: {"connector": linear(1408, 4096)} for stage in ("align", "instruct")},
    "mplug_owl_7b": {
        "align": {"vision_encoder": CLIP_224, "connector": OWL},
        "instruct": {"llm": 4_194_304},
    },
    "prismcaptioner_2b": {
        "align": {"connector": two_layers(1152, 2048)},
        "instruct": {"connector": 6_557_696, "llm": INTERNLM2_2B},
    },
    "prismcaptioner_7b": {
        "align": {"connector": two_layers(1152, 4096)},
        "instruct": {"connector": 21_504_000, "llm": INTERNLM2_7B},
    },
    "prismcaptioner_2b_paper": {"instruct": {"connector": 6_557_696, "llm": QLORA_2B}},
    "prismcaptioner_7b_paper": {"instruct": {"connector": 21_504_000, "llm": QLORA_7B}},
    "prismcaptioner_2b_allava": {
        "align": {"connector": 6_557_696},
        "instruct": {"connector": 6_557_696, "llm": INTERNLM2_2B},
    },
    "llava_internlm2_1_8b": {
        "align": {"connector": 6_557_696},
        "instruct": {"connector": 6_557_696, "llm": INTERNLM2_2B},
    },
    "llava_internlm2_7b": {
        "align": {"connector": 21_504_000},
        "instruct": {"connector": 21_504_000, "llm": INTERNLM2_7B},
    },
    "allava_3b": {
        stage: {"connector": two_layers(1024, 2560), "llm": PHI_2} for stage in ("align", "instruct")
    },
    "sharegpt4v_7b": {
        "align": {"connector": 20_979_712},
        # blocks 12 to 22: the last, 23, is not read
        "pretrain": {"vision_encoder": 11 * VIT_BLOCK, "connector": 20_979_712, "llm": LLAMA_7B},
        "instruct": {"connector": 20_979_712, "llm": LLAMA_7B},
    },
}
# the whole towers and LLMs, by what the recipes name
WHOLE = {
    "openai/clip-vit-large-patch14": CLIP_224,
    "openai/clip-vit-large-patch14-336": CLIP_336,
    "google/siglip-so400m-patch14-384": SIGLIP,
    "blip2/vision_encoder": EVA,
    "lmsys/vicuna-7b-v1.3": LLAMA_7B,
    "lmsys/vicuna-13b-v1.3": LLAMA_13B,
    "lmsys/vicuna-7b-v1.5": LLAMA_7B,
    "lmsys/vicuna-13b-v1.5": LLAMA_13B,
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_7B,
    "huggyllama/llama-7b": LLAMA_7B,
    "Vision-CAIR/vicuna-7b": LLAMA_7B + 2 * 4096,
    "Vision-CAIR/vicuna": LLAMA_13B + 2 * 5120,
    "internlm2-chat-1_8b-llama": INTERNLM2_2B,
    "internlm2-chat-7b-llama": INTERNLM2_7B,
    "microsoft/phi-2": PHI_2,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
}
# in every run of the tests; the others are slow
ALWAYS = {
    ("minigpt4_7b", "align"),
    ("mplug_owl_7b", "instruct"),
    ("prismcaptioner_2b_paper", "instruct"),
}


STAGES = [
    pytest.param(name, stage, marks=[] if (name, stage) in ALWAYS else [pytest.mark.slow])
    for name in recipe_names()
    for stage in load_config(f"recipes/{name}").stages
]
# one of each recipe runs with all layers: the others differ in what trains, which a few layers show
LAST = [(name, list(load_config(f"recipes/{name}").stages)[-1]) for name in recipe_names()]
EARLIER = [stage for stage in STAGES if stage.values not in LAST and stage.values not in ALWAYS]


def test_every_recipe_is_sized_and_counted() -> None:
    named: set[str] = set()
    for name in recipe_names():
        config = load_config(f"recipes/{name}")
        assert TRAINED[name].keys() == config.stages.keys()
        named |= {config.model.vision_encoder.options["path"], config.model.llm.options["path"]}
    assert TRAINED.keys() == set(recipe_names()) and named == WHOLE.keys()
    assert all(published_sizes(path) for path in named), "model/sizes.yaml"


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_counts_are_the_published_ones(stage_memory: GetMemory, name: str, stage: str) -> None:
    there, trained = dict.fromkeys(GROUPS, 0), dict.fromkeys(GROUPS, 0)
    model = load_config(f"recipes/{name}").model
    for key, value in stage_memory(f"recipes/{name}", stage).captioner.named_parameters():
        assert isinstance(value, FakeTensor)
        there[group_of(key)] += value.numel() if ".lora_" not in key else 0
        trained[group_of(key)] += value.numel() if value.requires_grad else 0
    assert {group: count for group, count in trained.items() if count} == TRAINED[name][stage]
    assert there["vision_encoder"] == WHOLE[model.vision_encoder.options["path"]]
    assert there["llm"] == WHOLE[model.llm.options["path"]]


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


@pytest.mark.parametrize(("name", "stage"), [*sorted(ALWAYS), *EARLIER])
def test_forward_and_backward_reach_what_trains(stage_memory: GetMemory, name: str, stage: str) -> None:
    trained, reached = passed(stage_memory(f"recipes/{name}", stage))
    # of the LLM's layers, which are all alike, the first few are run
    missed = trained - reached
    assert reached and all(key.startswith("llm.") and layer_of(key) >= LAYERS_RUN[1] for key in missed)


def layer_of(key: str) -> int:
    return int(key.split("layers.")[1].split(".")[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), LAST)
def test_all_layers_of_a_recipe_are_run_and_reached(
    stage_memory: GetMemory, monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    memory = stage_memory(f"recipes/{name}", stage)
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
def test_an_engine_in_bf16_holds_half_of_what_trains(stage_memory: GetMemory) -> None:
    memory = stage_memory("recipes/siglip_smollm2", "instruct")
    plain, sharded = memory.of(Sharding(0)), memory.of(Sharding(1, num_gpus=8))
    sizes = memory.sizes
    assert 0.95 * sum(sizes.frozen) < sizes.held < sum(sizes.frozen), "matrices in bf16 with either engine"
    in_fp32 = sizes.total - sizes.held
    assert plain.static.weights - sharded.static.weights == pytest.approx(2 * in_fp32, rel=1e-3)
    assert sharded.static.weights == pytest.approx(2 * sizes.total, rel=1e-3)
    assert sharded.passing.total() < plain.passing.total()
