"""BLIP-2's parts, and MiniGPT-4 upon them, against Blip2ForConditionalGeneration with the same weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import ModelConfig
from prismcap.model.build import build_captioner
from prismcap.model.imports import _parts
from prismcap.model.restore import load_trained
from prismcap.scripts.importing import import_weights

QFORMER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 16,
}
QUERIES = 5
PROJECTION = "language_projection"


@pytest.fixture
def blip2(tools: Any) -> Any:
    config = Blip2Config(
        vision_config={**tools.tower_config, "initializer_range": 0.3},
        qformer_config=QFORMER,
        text_config={"model_type": "llama", **tools.llama_config},
        num_query_tokens=QUERIES,
        image_token_index=9,
    )
    return tools.shake(Blip2ForConditionalGeneration(config))


def write(tools: Any, blip2: Any, layout: str = "sharded-safetensors", **changes: Tensor | None) -> Path:
    """The keys of the hub's files. changes: weights added or replaced; None takes one out."""
    source: Path = tools.tmp_path / "blip2-hf"
    blip2.config.save_pretrained(source)
    state = {name.removeprefix("model."): value for name, value in blip2.state_dict().items()}
    state["qformer.embeddings.position_ids"] = torch.arange(512)[None]  # as the first versions saved it
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    tools.write_weights(source, state, layout)
    return source


def minigpt4_file(tools: Any, blip2: Any, **changes: Any) -> Path:
    """As the released runner saves it: what trains and buffers, and much around it."""
    model: dict[str, Any] = {
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "llama_proj.weight": blip2.language_projection.weight.detach(),
        "llama_proj.bias": blip2.language_projection.bias.detach(),
    }
    for name, value in changes.items():
        if value is None:
            del model[name]
        else:
            model[name] = value
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]}
    config = {"run": {"task": "image_text_pretrain"}, "datasets": {}, "model": {"arch": "mini_gpt4"}}
    path: Path = tools.tmp_path / "minigpt4.pth"
    torch.save(
        {"model": model, "optimizer": optimizer, "config": config, "scaler": {"scale": 65536.0}, "epoch": 3},
        path,
    )
    return path


@pytest.mark.parametrize("layout", ["sharded-safetensors", "bin"])
def test_parts_are_blip2s_and_its_llm_is_not_read(
    tools: Any, blip2: Any, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = _parts.read_tensors

    def noting(*arguments: Any) -> dict[str, Tensor]:
        found = plain(*arguments)
        read.extend(found)
        return found

    monkeypatch.setattr(_parts, "read_tensors", noting)
    parts = tools.tmp_path / "parts"
    assert import_weights("blip2", write(tools, blip2, layout), parts).run is None
    assert not [name for name in read if name.startswith(("language", "lm_head"))]
    base, _ = tools.llm()
    values: dict[str, Any] = {
        "vision_encoder": {"name": "eva_vit_g", "path": str(parts / "vision_encoder"), "class_token": "keep"},
        "connector": {
            "name": "qformer",
            "path": str(parts / "qformer"),
            "num_queries": QUERIES,
            "hidden": 24,
            "layers": 3,
            "heads": 4,
            "intermediate": 40,
        },
        "llm": {"name": "causal_lm", "path": str(base)},
    }
    captioner = build_captioner(ModelConfig.model_validate(values))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = blip2.vision_model(pixels).last_hidden_state
        ours = captioner.encode_images(pixels)
        torch.testing.assert_close(ours, features, atol=1e-5, rtol=1e-5)
        expected = blip2.qformer(
            query_embeds=blip2.query_tokens.expand(2, -1, -1), encoder_hidden_states=features
        ).last_hidden_state
        torch.testing.assert_close(captioner.connector.query(ours), expected, atol=1e-5, rtol=1e-5)
    assert float(expected.std(dim=(0, 1)).min()) > 0.01
    values["connector"]["hidden"] = 48
    with pytest.raises(ConfigError, match="not the queries and Q-Former of these options"):
        build_captioner(ModelConfig.model_validate(values))


def test_minigpt4_is_blip2_with_its_projection(tools: Any, blip2: Any) -> None:
    import_weights("blip2", write(tools, blip2), tools.tmp_path / "parts")
    base, llm = tools.llm()
    run = tools.tmp_path / "run"
    options = [f"blip2={tools.tmp_path / 'parts'}", f"llm={base}"]
    import_weights("minigpt4", minigpt4_file(tools, blip2), run, options)
    captioner, config = load_trained(run)
    samples, tiles = tools.samples(QUERIES)
    with torch.no_grad():
        tokens = blip2.get_image_features(tiles).pooler_output
    assert float(tokens.std()) > 0.1
    for ours, expected in zip(
        tools.logits(captioner, samples, tiles), tools.expected_logits(llm, samples, tokens), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    stage = config.stages["imported"]
    assert (stage.template.name, stage.data.geometry) == ("minigpt4", "resize")
    assert stage.train["connector"].only == ("projection.*",), "all else is BLIP-2's"


def test_the_llama_2_variant_joins_four_patches(tools: Any, blip2: Any) -> None:
    """The class token goes, and BLIP-2's final norm is not loaded: one without weights is in its place."""
    import_weights("blip2", write(tools, blip2), tools.tmp_path / "parts")
    base, llm = tools.llm()
    projection = torch.nn.Linear(64, 32)
    weights = {"llama_proj.weight": projection.weight.detach(), "llama_proj.bias": projection.bias.detach()}
    run = tools.tmp_path / "run"
    options = [f"blip2={tools.tmp_path / 'parts'}", f"llm={base}"]
    import_weights("minigpt4", minigpt4_file(tools, blip2, **weights), run, options)
    captioner, config = load_trained(run)
    tower = copy.deepcopy(blip2.vision_model)
    with torch.no_grad():
        tower.post_layernorm.weight.fill_(1)
        tower.post_layernorm.bias.zero_()
        samples, tiles = tools.samples(4)
        patches = tower(tiles).last_hidden_state[:, 1:]
        joined = torch.stack(
            [torch.cat(list(row), dim=-1) for row in patches.unflatten(1, (4, 4)).flatten(0, 1)]
        )
        tokens = projection(joined.view(2, 4, 64))
    for ours, expected in zip(
        tools.logits(captioner, samples, tiles), tools.expected_logits(llm, samples, tokens), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert config.stages["imported"].template.name == "llama_2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"itm_head.weight": torch.zeros(2)}, "1 not BLIP-2's: itm_head.weight"),
        ({"qformer.layernorm.weight": None}, "1 missing: qformer: qformer.layernorm.weight"),
        ({"query_tokens": None}, "1 missing: qformer: queries"),
        ({"query_tokens": torch.zeros(1, 4, 24)}, r"queries \[1, 4, 24\], not \[1, 5, 24\]"),
        ({"vision_model.post_layernorm.bias": None}, "1 missing: vision_encoder: post_layernorm.bias"),
        ({"vision_model.x": torch.zeros(2)}, "1 more than .*vision_encoder: x"),
    ],
)
def test_every_weight_of_blip2_is_accounted_for(
    tools: Any, blip2: Any, changes: dict[str, Tensor | None], words: str
) -> None:
    source = write(tools, blip2, **changes)
    with pytest.raises(ConfigError, match=words):
        import_weights("blip2", source, tools.tmp_path / "parts")
    assert [path.name for path in tools.tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_tokens": torch.zeros(1, 5, 24)}, r"1 unknown \['query_tokens'\]"),
        ({"llama_proj.bias": None}, r"1 missing \['llama_proj.bias'\]"),
        (
            {"llama_proj.weight": torch.zeros(32, 23)},
            "width 23: the Q-Former of .* gives 24, and 4 .* are 64",
        ),
        ({"llama_proj.weight": torch.zeros(31, 24), "llama_proj.bias": torch.zeros(31)}, "shape"),
        ({"llama_proj.weight": 3}, "model: these are no tensors: llama_proj.weight"),
    ],
)
def test_every_weight_of_minigpt4_is_accounted_for(
    tools: Any, blip2: Any, changes: dict[str, Any], words: str
) -> None:
    import_weights("blip2", write(tools, blip2), tools.tmp_path / "parts")
    options = [f"blip2={tools.tmp_path / 'parts'}", f"llm={tools.llm()[0]}"]
    with pytest.raises(ConfigError, match=words):
        import_weights("minigpt4", minigpt4_file(tools, blip2, **changes), tools.tmp_path / "run", options)
    assert not (tools.tmp_path / "run").exists()


def test_a_pickle_is_never_run(tools: Any, blip2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tools.tmp_path)
    path = minigpt4_file(tools, blip2)
    torch.save({"model": {}, "config": tools.foreign()}, path)
    with pytest.raises(ConfigError, match="not a file of tensors alone"):
        import_weights("minigpt4", path, tools.tmp_path / "run", ["blip2=x", "llm=y"])
    assert not (tools.tmp_path / "executed").exists()
