"""LLaVA's own files: what is imported computes what transformers' LLaVA computes with the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from prismcap.configs.errors import ConfigError
from prismcap.model.restore import load_trained
from prismcap.scripts.importing import import_weights

IMAGE_TOKEN = 96  # any that the samples do not have
TOWER = "model.vision_tower."


def reference(tools: Any, linear: bool = False) -> Any:
    """transformers' model; `linear`: with a second layer that does nothing, which is LLaVA v1's one."""
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "projection_dim": 8, **tools.tower_config},
        text_config={"model_type": "llama", **tools.llama_config},
        image_token_index=IMAGE_TOKEN,
        projector_hidden_act="linear" if linear else "gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = tools.shake(LlavaForConditionalGeneration(config))
    if linear:
        with torch.no_grad():
            model.model.multi_modal_projector.linear_2.weight.copy_(torch.eye(32))
            model.model.multi_modal_projector.linear_2.bias.zero_()
    return model


def original_state(model: Any, with_tower: bool = False) -> dict[str, Tensor]:
    """The keys of LlavaLlamaForCausalLM."""
    linear = model.config.projector_hidden_act == "linear"
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.startswith("model.language_model."):
            state[name.replace("language_model.", "")] = value
        elif name.startswith(TOWER):
            if with_tower:
                state[f"{TOWER}vision_tower.vision_model.{name.removeprefix(TOWER)}"] = value
        elif "linear_1" in name:
            kind = name.rpartition(".")[2]
            state[f"model.mm_projector.{kind}" if linear else f"model.mm_projector.0.{kind}"] = value
        elif "linear_2" in name:
            if not linear:
                state[f"model.mm_projector.2.{name.rpartition('.')[2]}"] = value
        else:
            state[name] = value
    return state


def original_config(tools: Any, tower: Path, **values: Any) -> dict[str, Any]:
    llama = {key: value for key, value in tools.llama_config.items() if key != "rope_parameters"}
    own = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 16,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
    return {**llama, **own, **values}


def write_whole(
    tools: Any, model: Any, layout: str = "sharded-bin", with_tower: bool = False, **config: Any
) -> Path:
    """A whole checkpoint, its tower's own directory beside it (with other weights where the checkpoint has
    some)."""
    tower, saved = tools.tower("clip")
    if not with_tower:
        saved.load_state_dict(model.model.vision_tower.state_dict())
        saved.save_pretrained(tower)
    source: Path = tools.tmp_path / "llava"
    state = original_state(model, with_tower)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(
        4
    )  # as of transformers 4.31 and before
    tools.write_weights(source, state, layout)
    tools.write_tokenizer(source)
    (source / "config.json").write_text(json.dumps(original_config(tools, tower, **config)))
    return source


def check_parity(tools: Any, model: Any, run: Path) -> Any:
    captioner, config = load_trained(run)
    samples, tiles = tools.samples(tools.patches)
    for sample, logits, tile in zip(samples, tools.logits(captioner, samples, tiles), tiles, strict=True):
        input_ids = sample.input_ids.clone()
        for _, start, size in sample.spans:
            input_ids[start : start + size] = IMAGE_TOKEN
        with torch.no_grad():
            expected = model(input_ids=input_ids[None], pixel_values=tile[None], use_cache=False).logits[0]
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    return config


@pytest.mark.parametrize(
    ("layout", "with_tower"), [("sharded-bin", True), ("bin", False), ("sharded-safetensors", False)]
)
def test_a_whole_checkpoint_is_transformers_llava(tools: Any, layout: str, with_tower: bool) -> None:
    model = reference(tools)
    source = write_whole(tools, model, layout, with_tower)
    run = tools.tmp_path / "run"
    import_weights("llava", source, run)
    config = check_parity(tools, model, run)
    stage = config.stages["imported"]
    assert (stage.data.geometry, stage.template.name) == ("pad", "vicuna_v1")
    assert config.model.connector.options == {"depth": 2}
    assert (run / "vision_encoder").exists() is with_tower
    shards = sorted(path.name for path in (run / "llm").glob("*.safetensors"))
    assert len(shards) == (2 if "sharded" in layout else 1)


@pytest.mark.parametrize("alone", [True, False])
def test_a_projector_is_put_on_its_llm(tools: Any, alone: bool) -> None:
    """v1's one linear layer, as a file or with its config; that is the state after stage 1."""
    model = reference(tools, linear=True)
    base, llm = tools.llm()
    llm.model.load_state_dict(model.model.language_model.state_dict())
    llm.lm_head.load_state_dict(model.lm_head.state_dict())
    llm.save_pretrained(base)
    tower, saved = tools.tower("clip")
    saved.load_state_dict(model.model.vision_tower.state_dict())
    saved.save_pretrained(tower)
    source = tools.tmp_path / "stage1"
    source.mkdir()
    state = {name: value for name, value in original_state(model).items() if "mm_projector" in name}
    assert sorted(state) == ["model.mm_projector.bias", "model.mm_projector.weight"]
    torch.save(state, source / "mm_projector.bin")
    run = tools.tmp_path / "run"
    options = [f"llm={base}"]
    if alone:
        import_weights("llava", source / "mm_projector.bin", run, [*options, f"vision_encoder={tower}"])
    else:
        config = original_config(tools, tower, mm_projector_type="linear", image_aspect_ratio="square")
        (source / "config.json").write_text(json.dumps(config))
        import_weights("llava", source, run, options)
    config = check_parity(tools, model, run)
    stage = config.stages["imported"]
    assert (stage.data.geometry, stage.template.name) == ("center_crop", "plain")
    assert config.model.connector.name == "linear"
    assert not (run / "llm").exists(), "what is there already is not copied"


def test_a_lora_checkpoint_is_merged(tools: Any) -> None:
    """q and down of both layers: W + alpha / r * B A, worked out here."""
    model = reference(tools)
    base, llm = tools.llm()
    tower, saved = tools.tower("clip")
    model.model.vision_tower.load_state_dict(saved.state_dict())
    source = tools.tmp_path / "lora"
    layers = {f"model.layers.{i}.self_attn.q_proj": (32, 32) for i in range(2)}
    layers |= {f"model.layers.{i}.mlp.down_proj": (32, 48) for i in range(2)}
    deltas = tools.write_adapter(source, layers)
    projector = {name: value for name, value in original_state(model).items() if "mm_projector" in name}
    torch.save(
        {f"base_model.model.{name}": value for name, value in projector.items()},
        source / "non_lora_trainables.bin",
    )
    (source / "config.json").write_text(json.dumps(original_config(tools, tower)))
    merged = llm.state_dict()
    for name, delta in deltas.items():
        merged[f"{name}.weight"] += delta
    language = {
        name.removeprefix("model."): value for name, value in merged.items() if name != "lm_head.weight"
    }
    model.model.language_model.load_state_dict(language)
    model.lm_head.weight.data.copy_(merged["lm_head.weight"])
    import_weights("llava", source, tools.tmp_path / "run", [f"llm={base}"])
    check_parity(tools, model, tools.tmp_path / "run")


Change = Callable[[dict[str, Any]], Any]
FAULTS: dict[str, tuple[Change, str]] = {
    "unknown": (lambda s: s.update({"mm_newline": torch.zeros(3)}), "1 not LLaVA's: mm_newline"),
    "too much": (
        lambda s: s.update({"model.image_newline": torch.zeros(32)}),
        "1 more than the config has: llm: model.image_newline",
    ),
    "missing": (lambda s: s.pop("model.norm.weight"), "1 missing: llm: model.norm.weight"),
    "tower": (
        lambda s: s.pop(f"{TOWER}vision_tower.vision_model.pre_layrnorm.bias"),
        "1 missing: vision_encoder: pre_layrnorm.bias",
    ),
    "projector": (lambda s: s.pop("model.mm_projector.2.bias"), r"1 missing \['connector.layers.2.bias'\]"),
    "gap": (lambda s: s.update({"model.mm_projector.6.weight": torch.zeros(2, 2)}), "no projector of linear"),
    "shape": (
        lambda s: s.update({"model.mm_projector.0.weight": torch.zeros(32, 15)}),
        r"connector.layers.0.weight: shape \(32, 15\) in the file, \(32, 16\)",
    ),
    "head": (lambda s: s.pop("lm_head.weight"), "1 missing: llm: lm_head.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_weight_is_accounted_for(tools: Any, fault: str) -> None:
    change, words = FAULTS[fault]
    source = write_whole(tools, reference(tools), "bin", with_tower=True)
    tools.change_bin(source / "pytorch_model.bin", change)
    before = sorted(tools.tmp_path.iterdir())
    with pytest.raises(ConfigError, match=words):
        import_weights("llava", source, tools.tmp_path / "run")
    assert sorted(tools.tmp_path.iterdir()) == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_aspect_ratio", "anyres"),
        ("mm_use_im_start_end", True),
        ("mm_vision_select_feature", "cls_patch"),
        ("model_type", "llava_mpt"),
        ("mm_projector_type", "identity"),
    ],
)
def test_what_is_another_model_is_refused(tools: Any, key: str, value: Any) -> None:
    source = write_whole(tools, reference(tools), "bin", **{key: value})
    with pytest.raises(ConfigError, match=f"config.json: {key} is {value!r}"):
        import_weights("llava", source, tools.tmp_path / "run")


def test_options_that_are_needed_are_named(tools: Any) -> None:
    file = tools.tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.weight": torch.zeros(32, 16)}, file)
    run = tools.tmp_path / "run"
    with pytest.raises(ConfigError, match="llm=… is needed"):
        import_weights("llava", file, run)
    with pytest.raises(ConfigError, match="vision_encoder=… is needed"):
        import_weights("llava", file, run, [f"llm={tools.llm()[0]}"])
    source = write_whole(tools, reference(tools), "bin")
    with pytest.raises(ConfigError, match="a whole LLM of its own"):
        import_weights("llava", source, run, ["llm=somewhere"])
    with pytest.raises(ConfigError, match="Did you mean 'template'"):
        import_weights("llava", source, run, ["tempalte=plain"])


@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_is_more_than_lora_is_refused(tools: Any, change: dict[str, Any]) -> None:
    tower, _ = tools.tower("clip")
    source = tools.tmp_path / "lora"
    tools.write_adapter(source, {"model.layers.0.self_attn.q_proj": (32, 32)}, **change)
    torch.save({"model.mm_projector.weight": torch.zeros(32, 16)}, source / "non_lora_trainables.bin")
    (source / "config.json").write_text(json.dumps(original_config(tools, tower)))
    with pytest.raises(ConfigError, match=f"adapter_config.json: {next(iter(change))}"):
        import_weights("llava", source, tools.tmp_path / "run", [f"llm={tools.llm()[0]}"])


def test_a_pickle_is_never_run(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tools.tmp_path)
    file = tools.tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.weight": tools.foreign()}, file)
    with pytest.raises(ConfigError, match="not a file of tensors alone"):
        import_weights("llava", file, tools.tmp_path / "run", [f"llm={tools.llm()[0]}", "vision_encoder=x"])
    assert not (tools.tmp_path / "executed").exists()
