"""What trains, what stays, what is saved, and a run loaded again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig, LoraConfig
from prismcap.data.schema import Batch, Encoded
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.lora import lora_modules
from prismcap.model.restore import load_trained
from prismcap.model.trainable import (
    finish_stage,
    group_of,
    load_trainable_state,
    prepare_stage,
    trainable_parameters,
    trainable_state,
)
from prismcap.model.weights import load_weights, save_weights

MakeConfig = Callable[..., ModelConfig]
MakeSample = Callable[..., Encoded]
Pack = Callable[..., Batch]
LORA = LoraConfig(rank=2, alpha=8, target_modules=("q_proj", "v_proj"))
CONNECTOR = ["connector.layers.0.bias", "connector.layers.0.weight"]
CONNECTOR += ["connector.layers.2.bias", "connector.layers.2.weight"]
LAYER = ["input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm"]
LAYER += ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"]
LLM = ["llm.lm_head.weight", "llm.model.embed_tokens.weight"]
LLM += [f"llm.model.layers.{i}.{name}.weight" for i in range(2) for name in LAYER] + ["llm.model.norm.weight"]
LLM_LORA = [
    f"llm.model.layers.{i}.self_attn.{name}.lora_{side}.default.weight"
    for i in range(2)
    for name in ("q_proj", "v_proj")
    for side in "AB"
]
BLOCK = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "self_attn.k_proj", "self_attn.out_proj"]
BLOCK += ["self_attn.q_proj", "self_attn.v_proj"]
TOWER = [  # layer 2 of 3 lies above hidden_states[-2]; the head and post_layernorm are not read either
    f"vision_encoder.tower.encoder.layers.{i}.{name}.{kind}"
    for i in range(2)
    for name in BLOCK
    for kind in ("bias", "weight")
]
TOWER += [
    "vision_encoder.tower.embeddings.patch_embedding.bias",
    "vision_encoder.tower.embeddings.patch_embedding.weight",
    "vision_encoder.tower.embeddings.position_embedding.weight",
]
STAGES: dict[str, tuple[dict[Any, GroupConfig], list[str]]] = {
    "align": ({"connector": GroupConfig(lr=1e-2)}, CONNECTOR),
    "instruct": ({"connector": GroupConfig(lr=1e-2), "llm": GroupConfig(lr=1e-2)}, CONNECTOR + LLM),
    "instruct_lora": (
        {"connector": GroupConfig(lr=1e-2), "llm": GroupConfig(lr=1e-2, lora=LORA)},
        CONNECTOR + LLM_LORA,
    ),
    "everything": (
        {group: GroupConfig(lr=1e-2) for group in ("vision_encoder", "connector", "llm")},
        TOWER + CONNECTOR + LLM,
    ),
}


def train_a_little(captioner: Captioner, batch: Batch, steps: int = 3) -> None:
    captioner.train()
    optimizer = torch.optim.SGD(trainable_parameters(captioner).values(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        captioner(batch).loss_sum.backward()
        optimizer.step()
    captioner.eval()


@pytest.fixture
def batch(make_sample: MakeSample, pack: Pack) -> Batch:
    samples = [
        make_sample("a", 1, 16, seed=1),
        make_sample("b", 0, 16, seed=2),
        make_sample("c", 1, 16, seed=3),
    ]
    return pack([samples[:2], samples[2:]], torch.randn(2, 3, 16, 16))


def trained_and_changed(
    captioner: Captioner, train: dict[Any, GroupConfig], batch: Batch, thawed: str | None = None
) -> tuple[set[str], set[str]]:
    """The names that a stage trains, and those that some steps change. `thawed`: a frozen weight let go."""
    prepare_stage(captioner, train)
    if thawed is not None:
        captioner.get_parameter(thawed).requires_grad_(True)
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    names = set(trainable_state(captioner))
    train_a_little(captioner, batch)
    after = captioner.state_dict()
    return names, {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("stage", STAGES)
def test_trainable_names_are_golden_and_the_rest_is_bit_identical(
    model_config: MakeConfig, batch: Batch, stage: str
) -> None:
    train, golden = STAGES[stage]
    captioner = build_captioner(model_config())
    assert trainable_parameters(captioner) == {}
    names, changed = trained_and_changed(captioner, train, batch)
    assert sorted(names) == sorted(golden)
    assert changed == set(golden)
    finish_stage(captioner)
    assert trainable_parameters(captioner) == {}


@pytest.mark.parametrize(
    ("stage", "thawed"),
    [
        ("align", "llm.model.norm.weight"),
        ("instruct", "vision_encoder.tower.embeddings.patch_embedding.weight"),
        ("instruct_lora", "llm.model.layers.0.self_attn.q_proj.base_layer.weight"),
    ],
)
def test_a_frozen_weight_that_trains_is_seen(
    model_config: MakeConfig, batch: Batch, stage: str, thawed: str
) -> None:
    """The planted fault: one weight that the forward pass reads was not frozen."""
    train, golden = STAGES[stage]
    names, changed = trained_and_changed(build_captioner(model_config()), train, batch, thawed)
    assert names != set(golden) and changed != set(golden)
    assert names - set(golden) == changed - set(golden) == {thawed}


def test_a_plain_model_has_the_names_it_had_before_lora(model_config: MakeConfig, batch: Batch) -> None:
    captioner = build_captioner(model_config())
    names = list(captioner.state_dict())
    prepare_stage(captioner, STAGES["instruct_lora"][0])
    with pytest.raises(ValueError, match="finish_stage"):
        prepare_stage(captioner, STAGES["align"][0])
    train_a_little(captioner, batch)
    finish_stage(captioner)
    assert list(captioner.state_dict()) == names and not lora_modules(captioner)
    assert not getattr(captioner.llm, "_hf_peft_config_loaded", False)
    assert not hasattr(captioner.llm, "peft_config")


def test_merged_lora_is_unmerged_lora(model_config: MakeConfig, batch: Batch) -> None:
    captioner = build_captioner(model_config())
    start = captioner.logits(batch)
    prepare_stage(captioner, STAGES["instruct_lora"][0])
    torch.testing.assert_close(captioner.logits(batch), start)  # adapters start at nothing
    train_a_little(captioner, batch)
    unmerged = captioner.logits(batch).detach()
    state = {name: value.clone() for name, value in trainable_state(captioner).items()}
    finish_stage(captioner)
    merged = captioner.logits(batch).detach()
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
    # guard: the adapters did matter, so a merge that is left out would be red
    other = build_captioner(model_config())
    prepare_stage(other, STAGES["instruct_lora"][0])
    load_trainable_state(other, state)
    for module in lora_modules(other).values():
        module.merge = lambda: None
    finish_stage(other)
    assert (other.logits(batch) - unmerged).abs().max() > 1e-2


def test_lora_in_the_vision_encoder_leaves_unread_layers_alone(
    model_config: MakeConfig, batch: Batch
) -> None:
    captioner = build_captioner(model_config())
    prepare_stage(captioner, {"vision_encoder": GroupConfig(lr=1e-2, lora=LORA)})
    assert all(".layers.2." not in name for name in trainable_parameters(captioner))
    assert len(trainable_parameters(captioner)) == 8
    captioner.train()(batch).loss_sum.backward()
    assert all(value.grad is not None for value in trainable_parameters(captioner).values())


def test_adapters_start_from_the_seed_alone(model_config: MakeConfig) -> None:
    states: list[dict[str, Tensor]] = []
    for seed in (1, 1, 2):
        captioner = build_captioner(model_config())
        torch.rand(len(states) + 1)
        prepare_stage(captioner, STAGES["instruct_lora"][0], seed=seed)
        states.append({name: value for name, value in trainable_state(captioner).items() if "lora_A" in name})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_lora_without_a_target_says_what_there_is(model_config: MakeConfig) -> None:
    captioner = build_captioner(model_config())
    lora = LoraConfig(target_modules=("q_proj", "query_key_value"))
    with pytest.raises(ConfigError, match=r"train.llm.lora.*query_key_value.*down_proj, gate_proj"):
        prepare_stage(captioner, {"llm": GroupConfig(lr=1e-3, lora=lora)})
    assert not lora_modules(captioner)


def test_groups() -> None:
    assert group_of("llm.model.norm.weight") == "llm"
    with pytest.raises(ValueError, match="belongs to none"):
        group_of("llms.model.norm.weight")


def test_a_frozen_encoder_stays_in_eval_and_batch_norm_always_does(model_config: MakeConfig) -> None:
    timm = {"name": "timm", "model": "resnet10t", "image_size": 32}
    captioner = build_captioner(model_config(vision_encoder=timm))
    before = {name: value.clone() for name, value in captioner.vision_encoder.named_buffers()}
    for train in (STAGES["align"][0], STAGES["everything"][0]):
        prepare_stage(captioner, train)
        captioner.train()
        assert captioner.llm.training and captioner.connector.training
        assert captioner.vision_encoder.training == ("vision_encoder" in train)
        captioner.encode_images(torch.randn(4, 3, 32, 32))
        assert all(
            torch.equal(value, before[name]) for name, value in captioner.vision_encoder.named_buffers()
        )
        finish_stage(captioner)
        assert not captioner.vision_encoder.training


def test_a_frozen_encoder_makes_no_graph(model_config: MakeConfig) -> None:
    captioner = build_captioner(model_config())
    prepare_stage(captioner, STAGES["align"][0])
    assert not captioner.encode_images(torch.randn(1, 3, 16, 16)).requires_grad
    finish_stage(captioner)
    prepare_stage(captioner, STAGES["everything"][0])
    assert captioner.encode_images(torch.randn(1, 3, 16, 16)).requires_grad


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_other_weights_are_refused_whole(model_config: MakeConfig, fault: str) -> None:
    captioner = build_captioner(model_config())
    prepare_stage(captioner, STAGES["align"][0])
    state = {name: value + 1 for name, value in trainable_state(captioner).items()}
    if fault == "missing":
        state.pop("connector.layers.2.bias")
    elif fault == "unexpected":
        state["connector.layers.4.bias"] = torch.zeros(1)
    else:
        state["connector.layers.2.bias"] = torch.zeros(3)
    before = {name: value.clone() for name, value in trainable_state(captioner).items()}
    with pytest.raises(ConfigError, match=r"connector.layers"):
        load_trainable_state(captioner, state)
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(captioner).items())


def test_building_depends_on_the_seed_alone(model_config: MakeConfig) -> None:
    built = []
    for seed in (1, 1, 2):
        torch.rand(len(built) + 1)
        before = torch.get_rng_state()
        built.append(build_captioner(model_config(), seed=seed).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])
    assert not torch.equal(built[0]["connector.layers.0.weight"], built[2]["connector.layers.0.weight"])


@pytest.mark.parametrize("name", ["linear", "mlp", "patch_concat"])
def test_tokens_can_start_with_the_spread_of_the_embeddings(model_config: MakeConfig, name: str) -> None:
    captioner = build_captioner(model_config(connector={"name": name, "match_embedding_std": True}))
    features = torch.randn(32, captioner.vision_encoder.num_patches, captioner.vision_encoder.hidden_size)
    expected = captioner.llm.get_input_embeddings().weight.std().item()
    assert captioner.connector(features).std().item() == pytest.approx(expected, rel=0.1)


def test_a_tokenizer_that_is_larger_than_the_embeddings_is_refused(model_config: MakeConfig) -> None:
    from prismcap.model.build import check_llm
    from prismcap.model.contracts import LanguageModel

    class Large:
        def __len__(self) -> int:
            return 98

    llm = build_captioner(model_config()).llm
    with pytest.raises(ConfigError, match="tokenizer has 98 tokens, the model embeds 97"):
        check_llm(LanguageModel(llm, Large()), "x.yaml: model.llm")
    llm.config.final_logit_softcapping = 30.0
    with pytest.raises(ConfigError, match="final_logit_softcapping=30"):
        check_llm(LanguageModel(llm, None), "x.yaml: model.llm")


def test_weights_round_trip_tied_and_strided(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    state = {"tied": base, "tied_too": base, "row": base[1], "turned": base.T, "half": base.half()}
    save_weights(tmp_path / "w.safetensors", state)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded.keys() == state.keys()
    assert all(
        torch.equal(loaded[name], state[name]) and loaded[name].dtype == state[name].dtype for name in state
    )
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    from prismcap.model import weights

    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)})

    def no_space(_: Any, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(weights, "save_file", no_space)
    with pytest.raises(OSError, match=r"w\.safetensors.*No space left"):
        save_weights(path, {"a": torch.zeros(2)})
    assert torch.equal(load_weights(path)["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_damaged_or_missing_weights_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weights at .*none"):
        load_weights(tmp_path / "none")
    save_weights(tmp_path / "w", {"a": torch.ones(100)})
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-8])
    with pytest.raises(ConfigError, match="w is not a whole safetensors file"):
        load_weights(tmp_path / "w")


@pytest.fixture
def run(model_config: MakeConfig, batch: Batch, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A run of two stages as the trainer leaves it, and the logits after each."""
    stage: dict[str, Any] = {
        "data": {"mix": [{"name": "llava_json", "path": "x.json"}]},
        "template": {"name": "plain"},
        "schedule": {"max_steps": 1},
    }
    lora = LORA.model_dump(mode="json")
    config = {
        "name": "tiny",
        "seed": 5,
        "model": model_config().model_dump(mode="json"),
        "stages": {
            "align": {**stage, "train": {"connector": {"lr": 1e-2}}},
            "instruct": {**stage, "train": {"connector": {"lr": 1e-2}, "llm": {"lr": 1e-2, "lora": lora}}},
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    captioner = build_captioner(model_config(), seed=5)
    logits = {}
    for name, golden in (("align", "align"), ("instruct", "instruct_lora")):
        prepare_stage(captioner, STAGES[golden][0], seed=5)
        train_a_little(captioner, batch)
        folder = tmp_path / name / "final"
        folder.mkdir(parents=True)
        save_weights(folder / "weights.safetensors", trainable_state(captioner))
        finish_stage(captioner)
        logits[name] = captioner.logits(batch)
    return tmp_path, logits


def test_a_run_is_loaded_again(
    run: tuple[Path, dict[str, Tensor]], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prismcap.configs.load.check_components", lambda *_: None)
    folder, logits = run
    captioner, config = load_trained(folder)
    assert torch.equal(captioner.logits(batch), logits["instruct"]) and config.name == "tiny"
    assert not captioner.training and not trainable_parameters(captioner)
    after_align, _ = load_trained(folder, last_stage="align")
    assert torch.equal(after_align.logits(batch), logits["align"])
    assert not torch.equal(logits["align"], logits["instruct"])


def test_an_unfinished_run_says_so(
    run: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("prismcap.configs.load.check_components", lambda *_: None)
    folder, _ = run
    with pytest.raises(ConfigError, match="Did you mean 'align'"):
        load_trained(folder, last_stage="allign")
    (folder / "instruct/final/weights.safetensors").unlink()
    with pytest.raises(ConfigError, match="stage 'instruct' has not finished"):
        load_trained(folder)
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        load_trained(tmp_path / "nothing")
