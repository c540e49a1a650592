"""MiniGPT-4's projection upon BLIP-2's parts, against Blip2ForConditionalGeneration with the same weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from blip2_files import QUERIES, write_blip2

from prismcap.configs.errors import ConfigError
from prismcap.model.restore import load_trained
from prismcap.scripts.importing import import_weights


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


def test_minigpt4_is_blip2_with_its_projection(tools: Any, blip2: Any) -> None:
    import_weights("blip2", write_blip2(tools, blip2), tools.tmp_path / "parts")
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
    import_weights("blip2", write_blip2(tools, blip2), tools.tmp_path / "parts")
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
        ({"query_tokens": torch.zeros(1, 5, 24)}, r"1 unknown \['query_tokens'\]"),
        ({"llama_proj.bias": None}, r"1 missing \['llama_proj.bias'\]"),
        (
            {"llama_proj.weight": torch.zeros(32, 23)},
            "width 23: the Q-Former of .* gives 24, and 4 .* are 64",
        ),
        ({"llama_proj.weight": torch.zeros(31, 24), "llama_proj.bias": torch.zeros(31)}, "shape"),
        ({"llama_proj.bias": torch.zeros(31)}, r"llama_proj.weight \[32, 24\] and llama_proj.bias \[31\]"),
        ({"llama_proj.weight": 3}, "model: these are no tensors: llama_proj.weight"),
    ],
)
def test_every_weight_of_minigpt4_is_accounted_for(
    tools: Any, blip2: Any, changes: dict[str, Any], words: str
) -> None:
    import_weights("blip2", write_blip2(tools, blip2), tools.tmp_path / "parts")
    options = [f"blip2={tools.tmp_path / 'parts'}", f"llm={tools.llm()[0]}"]
    with pytest.raises(ConfigError, match=words):
        import_weights("minigpt4", minigpt4_file(tools, blip2, **changes), tools.tmp_path / "run", options)
    assert not (tools.tmp_path / "run").exists()


def test_a_file_of_something_else_is_refused(tools: Any, blip2: Any) -> None:
    path = tools.tmp_path / "other.pth"
    torch.save({"llama_proj.weight": blip2.language_projection.weight.detach()}, path)
    with pytest.raises(ConfigError, match=r"other\.pth: has no mapping 'model'"):
        import_weights("minigpt4", path, tools.tmp_path / "run", ["blip2=x", "llm=y"])


def test_a_pickle_is_never_run(tools: Any, blip2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tools.tmp_path)
    path = minigpt4_file(tools, blip2)
    torch.save({"model": {}, "config": tools.foreign()}, path)
    with pytest.raises(ConfigError, match="not a file of tensors alone"):
        import_weights("minigpt4", path, tools.tmp_path / "run", ["blip2=x", "llm=y"])
    assert not (tools.tmp_path / "executed").exists()
