"""PrismCaptioner: the adapter added to InternLM2's packed layers, converted afterwards, is the same LLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from internlm2_files import InternLM2, make_internlm2
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from prismcap.configs.errors import ConfigError
from prismcap.data.templates import internlm2
from prismcap.data.templates._jinja import chat_template
from prismcap.model.convert.internlm2 import convert_internlm2
from prismcap.model.imports._adapter import Adapter, merge
from prismcap.model.imports._parts import Parts
from prismcap.model.restore import load_trained
from prismcap.scripts.importing import import_weights

TEMPLATE = chat_template(internlm2.build(internlm2.Options()))


def converted(tools: Any, model: InternLM2, name: str, layout: str = "sharded-safetensors") -> Path:
    source = model.write(tools.tmp_path / f"{name}-internlm2", layout)
    convert_internlm2(source, tools.tmp_path / name, TEMPLATE)
    folder: Path = tools.tmp_path / name
    return folder


def layers_of(model: InternLM2) -> dict[str, tuple[int, int]]:
    """Every linear layer but the head, as the paper's QLoRA adapts them."""
    return {
        name.removesuffix(".weight"): (value.shape[0], value.shape[1])
        for name, value in model.weights.items()
        if value.ndim == 2 and ".layers." in name
    }


def write_projector(folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True)
    shapes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    state = {f"model.{name}": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    save_file(state, folder / "model.safetensors")
    values = {"model_type": "projector", "hidden_act": "gelu", "bias": True, "depth": 2, **config}
    (folder / "config.json").write_text(json.dumps(values))
    return state


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "rslora"), [(4, 2, False), (4, 4, False), (4, 2, True)]
)
def test_the_import_is_the_merged_model(tools: Any, num_heads: int, num_kv_heads: int, rslora: bool) -> None:
    model = make_internlm2(num_heads, num_kv_heads)
    base = converted(tools, model, "base")
    source = tools.tmp_path / "prism"
    deltas = tools.write_adapter(source / "llm_adapter", layers_of(model), use_rslora=rslora)
    state = write_projector(source / "projector")
    tower, siglip = tools.tower("siglip")
    run = tools.tmp_path / "run"
    import_weights("prismcaptioner", source, run, [f"llm={base}", f"vision_encoder={tower}"])
    for name, delta in deltas.items():
        model.weights[f"{name}.weight"] += delta * (3**0.5 if rslora else 1)  # alpha / sqrt(3), not alpha / 3
    llm = AutoModelForCausalLM.from_pretrained(converted(tools, model, "merged"), dtype=torch.float32)
    captioner, config = load_trained(run)
    assert captioner.connector.num_tokens == 15, "the first of 16 patches is dropped"
    samples, tiles = tools.samples(15)
    with torch.no_grad():
        features = siglip(tiles, output_hidden_states=True).hidden_states[-2][:, 1:]
        inner = F.gelu(features @ state["model.0.weight"].T + state["model.0.bias"])
        tokens = inner @ state["model.2.weight"].T + state["model.2.bias"]
    for ours, expected in zip(
        tools.logits(captioner, samples, tiles), tools.expected_logits(llm, samples, tokens), strict=True
    ):
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
    stage = config.stages["imported"]
    assert (stage.template.name, stage.data.geometry) == ("internlm2", "pad")
    assert config.prompt.startswith("Describe the fine-grained content of the image")
    assert len(list((run / "llm").glob("model-*.safetensors"))) == 2, "a shard for a shard"


def change(file: Path, name: str, value: torch.Tensor | None) -> None:
    state = load_file(file)
    if value is None:
        del state[name]
    else:
        state[name] = value
    save_file(state, file)


WQKV = "base_model.model.model.layers.0.attention.wqkv"


@pytest.mark.parametrize(
    ("file", "name", "value", "words"),
    [
        (
            "llm_adapter/adapter_model",
            f"{WQKV}.lora_magnitude_vector",
            torch.zeros(2),
            "1 unknown .*magnitude",
        ),
        ("llm_adapter/adapter_model", f"{WQKV}.lora_B.weight", None, "1 with one of lora_A and lora_B"),
        ("llm_adapter/adapter_model", f"{WQKV}.lora_A.weight", torch.zeros(2, 32), "not of the rank 3"),
        ("llm_adapter/adapter_model", f"{WQKV}.lora_A.weight", torch.zeros(3, 31), "31.* to .*proj"),
        ("projector/model", "model.1.scale", torch.zeros(2), "1 not PrismCaptioner's: model.1.scale"),
        ("projector/model", "model.2.bias", None, "1 missing .*connector.layers.2.bias"),
    ],
)
def test_every_weight_is_accounted_for(
    tools: Any, file: str, name: str, value: torch.Tensor | None, words: str
) -> None:
    model = make_internlm2()
    base, (tower, _) = converted(tools, model, "base"), tools.tower("siglip")
    source = tools.tmp_path / "prism"
    tools.write_adapter(source / "llm_adapter", layers_of(model))
    write_projector(source / "projector")
    change(source / f"{file}.safetensors", name, value)
    with pytest.raises(ConfigError, match=words):
        import_weights(
            "prismcaptioner", source, tools.tmp_path / "run", [f"llm={base}", f"vision_encoder={tower}"]
        )
    assert not (tools.tmp_path / "run").exists()


def test_layers_that_the_llm_does_not_have_are_named(tools: Any) -> None:
    base = converted(tools, make_internlm2(), "base")
    source = tools.tmp_path / "prism"
    write_projector(source / "projector")
    options = [f"llm={base}", f"vision_encoder={tools.tower('siglip')[0]}"]
    tools.write_adapter(source / "llm_adapter", {"model.layers.0.attention.wqkx": (8, 32)})
    with pytest.raises(ConfigError, match="wqkx: no layer of the LLM is called so"):
        import_weights("prismcaptioner", source, tools.tmp_path / "run", options)
    tools.write_adapter(source / "llm_adapter", {"model.layers.7.attention.wo": (32, 32)})
    with pytest.raises(
        ConfigError, match=r"1 weights that .* does not have: \['model.layers.7.self_attn.o_proj"
    ):
        import_weights("prismcaptioner", source, tools.tmp_path / "run", options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": None}, "adapter_config.json: r is None"),
        ({"r": 0}, "r is 0, expected a whole number above 0"),
        ({"lora_alpha": "5"}, "lora_alpha is '5'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4' may have changed"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: 'loftq'"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tools: Any, change: dict[str, Any], words: str) -> None:
    folder = tools.tmp_path / "adapter"
    tools.write_adapter(folder, {"model.layers.0.attention.wo": (32, 32)}, init_lora_weights="gaussian")
    Adapter(folder)
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text()) | change
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ConfigError, match=words):
        Adapter(folder)


@pytest.mark.parametrize("text", [None, "{}", '{"model_type": "llama", "hidden_size": "wide"}'])
def test_a_base_whose_config_cannot_be_read_is_named(tools: Any, text: str | None) -> None:
    base, _ = tools.llm()
    adapter = tools.tmp_path / "adapter"
    tools.write_adapter(adapter, {"model.layers.0.self_attn.o_proj": (32, 32)})
    (base / "config.json").unlink()
    if text is not None:
        (base / "config.json").write_text(text)
    parts = Parts(adapter, tools.tmp_path / "out", "nobody")
    with pytest.raises(ConfigError, match=f"{base}: its config.json cannot be read"):
        merge(Adapter(adapter), str(base), parts)


def test_what_is_another_model_is_refused(tools: Any) -> None:
    model = make_internlm2()
    unconverted = model.write(tools.tmp_path / "unconverted")
    source, run = tools.tmp_path / "prism", tools.tmp_path / "run"
    tools.write_adapter(source / "llm_adapter", layers_of(model))
    write_projector(source / "projector", hidden_act="relu")
    with pytest.raises(ConfigError, match="hidden_act is 'relu'"):
        import_weights("prismcaptioner", source, run, [f"llm={unconverted}"])
    (source / "projector" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="prismcap convert internlm2"):
        import_weights("prismcaptioner", source, run, [f"llm={unconverted}"])
    (source / "visual_encoder_adapter").mkdir()
    with pytest.raises(ConfigError, match="visual_encoder_adapter"):
        import_weights("prismcaptioner", source, run, [f"llm={unconverted}"])
    with pytest.raises(ConfigError, match=r"prismcaptioner\.llm: this key is required"):
        import_weights("prismcaptioner", source, run)


def test_a_pickle_is_never_run(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tools.tmp_path)
    base = converted(tools, make_internlm2(), "base")
    source = tools.tmp_path / "prism"
    write_projector(source / "projector")
    tools.write_adapter(source / "llm_adapter", {"model.layers.0.attention.wo": (32, 32)})
    (source / "llm_adapter" / "adapter_model.safetensors").unlink()
    torch.save({"x": tools.foreign()}, source / "llm_adapter" / "adapter_model.bin")
    with pytest.raises(ConfigError, match="not a file of tensors alone"):
        import_weights("prismcaptioner", source, tools.tmp_path / "run", [f"llm={base}"])
    assert not (tools.tmp_path / "executed").exists()
