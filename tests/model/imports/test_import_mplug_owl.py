"""mPLUG-Owl's files against its equations, written out over the released names: loops, no module of ours.

Tower: class token and patches + positions, pre_layernorm; per layer x + dense(attention(norm(x))), q, k and v
of a head lying together, x + fc2(u * sigmoid(1.702 u)) with u = fc1(norm(x)); post_layernorm on all tokens.
Abstractor: see tests/model/connector/test_connector_abstractor.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prismcap.configs.errors import ConfigError
from prismcap.model.restore import load_trained
from prismcap.scripts.importing import import_weights

WIDTH, INNER, HEADS, LAYERS, PATCHES = 16, 32, 2, 3, 16
A_WIDTH, A_INNER, A_HEADS, A_LAYERS, QUERIES = 16, 40, 4, 2, 5
LLM = 32
Weights = dict[str, Tensor]


def random_parts(seed: int = 3) -> Weights:
    """The vision model and the abstractor, in the released names."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.cls_token": (1, 1, WIDTH),
        "vision_model.embeddings.patch_embed.weight": (WIDTH, 3, 4, 4),
        "vision_model.embeddings.position_embedding": (1, PATCHES + 1, WIDTH),
        "query_tokens": (1, QUERIES, A_WIDTH),
        "abstractor.vit_eos": (1, 1, LLM),
    }
    norms = {"vision_model.embeddings.pre_layernorm": WIDTH, "vision_model.post_layernorm": WIDTH}
    linear = {"abstractor.visual_fc": (LLM, A_WIDTH)}
    for i in range(LAYERS):
        at = f"vision_model.encoder.layers.{i}"
        norms |= {f"{at}.input_layernorm": WIDTH, f"{at}.post_attention_layernorm": WIDTH}
        linear |= {
            f"{at}.self_attn.query_key_value": (3 * WIDTH, WIDTH),
            f"{at}.self_attn.dense": (WIDTH, WIDTH),
        }
        linear |= {f"{at}.mlp.fc1": (INNER, WIDTH), f"{at}.mlp.fc2": (WIDTH, INNER)}
    for i in range(A_LAYERS):
        at = f"abstractor.encoder.layers.{i}.crossattention"
        norms |= {f"{at}.norm1": A_WIDTH, f"{at}.normk": A_WIDTH, f"{at}.output.norm2": A_WIDTH}
        norms |= {f"{at}.output.mlp.ffn_ln": A_INNER}
        linear |= {f"{at}.attention.{name}": (A_WIDTH, A_WIDTH) for name in ("query", "key", "value")}
        linear |= {f"{at}.output.out_proj": (A_WIDTH, A_WIDTH), f"{at}.output.mlp.w2": (A_WIDTH, A_INNER)}
        linear |= {f"{at}.output.mlp.w1": (A_INNER, A_WIDTH), f"{at}.output.mlp.w3": (A_INNER, A_WIDTH)}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    shapes |= {f"{name}.{kind}": (width,) for name, width in norms.items() for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(seed)
    ones = {f"{name}.weight" for name in norms}
    return {
        name: 0.3 * torch.randn(shape, generator=generator) + float(name in ones)
        for name, shape in shapes.items()
    }


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("pqf,pkf->pqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("pqk,pkf->pqf", scores.softmax(-1), value)


def tower(w: Weights, pixels: Tensor) -> Tensor:
    """[P, 17, WIDTH], all tokens normalised."""
    v = {name.removeprefix("vision_model."): value for name, value in w.items()}
    patches = F.conv2d(pixels, v["embeddings.patch_embed.weight"], stride=4).flatten(2).transpose(1, 2)
    x = torch.cat([v["embeddings.cls_token"].expand(len(pixels), -1, -1), patches], dim=1)
    x = norm(x + v["embeddings.position_embedding"], v, "embeddings.pre_layernorm", 1e-6)
    size = WIDTH // HEADS
    for i in range(LAYERS):
        at = f"encoder.layers.{i}"
        packed = linear(norm(x, v, f"{at}.input_layernorm", 1e-6), v, f"{at}.self_attn.query_key_value")
        heads = []
        for head in range(HEADS):
            own = packed[..., 3 * head * size : 3 * (head + 1) * size]
            heads.append(attend(own[..., :size], own[..., size : 2 * size], own[..., 2 * size :]))
        x = x + linear(torch.cat(heads, dim=-1), v, f"{at}.self_attn.dense")
        u = linear(norm(x, v, f"{at}.post_attention_layernorm", 1e-6), v, f"{at}.mlp.fc1")
        x = x + linear(u * torch.sigmoid(1.702 * u), v, f"{at}.mlp.fc2")
    return norm(x, v, "post_layernorm", 1e-6)


def abstractor(w: Weights, x: Tensor) -> Tensor:
    """[P, QUERIES + 1, LLM]."""
    z = w["query_tokens"].expand(len(x), -1, -1)
    size = A_WIDTH // A_HEADS
    for i in range(A_LAYERS):
        at = f"abstractor.encoder.layers.{i}.crossattention"
        z = norm(z, w, f"{at}.norm1", 1e-5)
        context = torch.cat([z, norm(x, w, f"{at}.normk", 1e-5)], dim=1)
        query, key, value = (
            linear(values, w, f"{at}.attention.{name}")
            for values, name in ((z, "query"), (context, "key"), (context, "value"))
        )
        parts = [slice(head * size, (head + 1) * size) for head in range(A_HEADS)]
        found = torch.cat([attend(query[..., p], key[..., p], value[..., p]) for p in parts], dim=-1)
        z = z + linear(found, w, f"{at}.output.out_proj")
        h = norm(z, w, f"{at}.output.norm2", 1e-5)
        mlp = f"{at}.output.mlp"
        inner = F.silu(linear(h, w, f"{mlp}.w1")) * linear(h, w, f"{mlp}.w3")
        z = z + linear(norm(inner, w, f"{mlp}.ffn_ln", 1e-6), w, f"{mlp}.w2")
    tokens = linear(z, w, "abstractor.visual_fc")
    return torch.cat([tokens, w["abstractor.vit_eos"].expand(len(x), -1, -1)], dim=1)


def write(tools: Any, llm: Any, layout: str = "sharded-bin", **changes: Tensor | None) -> Path:
    source: Path = tools.tmp_path / "owl"
    state: dict[str, Tensor] = random_parts()
    state |= {f"language_model.{name}": value for name, value in llm.state_dict().items()}
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    tools.write_weights(source, state, layout)
    tools.write_tokenizer(source)
    (source / "preprocessor_config.json").write_text(json.dumps({"do_center_crop": False, "size": 16}))
    text = {key: value for key, value in tools.llama_config.items() if key != "rope_parameters"}
    config = {
        "model_type": "mplug-owl",
        "num_query_tokens": QUERIES,
        "vision_config": {"layer_norm_eps": 1e-6, **tools.tower_config},
        "visual_abstractor_config": {
            "hidden_size": A_WIDTH,
            "intermediate_size": A_INNER,
            "num_attention_heads": A_HEADS,
            "num_hidden_layers": A_LAYERS,
            "encoder_hidden_size": WIDTH,
        },
        "text_config": {"model_type": "llama", "rope_theta": 50000.0, **text},
    }
    (source / "config.json").write_text(json.dumps(config))
    return source


@pytest.mark.parametrize("layout", ["sharded-bin", "safetensors"])
def test_the_import_follows_the_equations(tools: Any, layout: str) -> None:
    _, llm = tools.llm()
    run = tools.tmp_path / "run"
    import_weights("mplug-owl", write(tools, llm, layout), run)
    captioner, config = load_trained(run)
    samples, tiles = tools.samples(QUERIES + 1)
    weights = random_parts()
    features = tower(weights, tiles)
    tokens = abstractor(weights, features)
    assert float(features.std(dim=(0, 1)).min()) > 0.05 and float(tokens.std()) > 0.1
    with torch.no_grad():
        torch.testing.assert_close(captioner.encode_images(tiles), features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(captioner.connector(features), tokens, atol=1e-4, rtol=1e-4)
    for ours, expected in zip(
        tools.logits(captioner, samples, tiles), tools.expected_logits(llm, samples, tokens), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
    assert config.stages["imported"].template.name == "owl"


LAYER = "abstractor.encoder.layers.1.crossattention"
FAULTS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "unknown": ({"abstractor.x": torch.zeros(2)}, "1 not mPLUG-Owl's: abstractor.x"),
    "unknown layer": (
        {f"{LAYER}.attention.gate.weight": torch.zeros(2)},
        "1 not mPLUG-Owl's: .*attention.gate.weight",
    ),
    "unknown tower": (
        {"vision_model.head.weight": torch.zeros(2)},
        "1 not mPLUG-Owl's: vision_model.head.weight",
    ),
    "missing": ({"vision_model.post_layernorm.bias": None}, "1 missing: vision_encoder: post_layernorm.bias"),
    "missing qkv": (
        {"vision_model.encoder.layers.0.self_attn.query_key_value.bias": None},
        "3 missing: .*k_proj.bias.*q_proj.bias.*v_proj.bias",
    ),
    "missing connector": ({f"{LAYER}.normk.weight": None}, "1 missing .*connector.layers.1.normk.weight"),
    "missing llm": ({"language_model.lm_head.weight": None}, "1 missing: llm: lm_head.weight"),
    "end token": ({"abstractor.vit_eos": torch.zeros(1, 1, 31)}, r"end_token: shape \(1, 1, 31\)"),
    "odd": (
        {"vision_model.encoder.layers.0.self_attn.query_key_value.bias": torch.zeros(47)},
        "47 rows are no q, k and v of 2 heads",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_weight_is_accounted_for(tools: Any, fault: str) -> None:
    changes, words = FAULTS[fault]
    source = write(tools, tools.llm()[1], "bin", **changes)
    before = sorted(tools.tmp_path.iterdir())
    with pytest.raises(ConfigError, match=words):
        import_weights("mplug-owl", source, tools.tmp_path / "run")
    assert sorted(tools.tmp_path.iterdir()) == before


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(model_type="mplug_owl2"), "model_type is 'mplug_owl2'"),
        (lambda c: c["visual_abstractor_config"].update(layer_norm_eps=1e-5), "layer_norm_eps is 1e-05"),
        (lambda c: c["text_config"].update(model_type="gpt2"), "text_config.model_type is 'gpt2'"),
    ],
)
def test_what_is_another_model_is_refused(tools: Any, change: Change, words: str) -> None:
    source = write(tools, tools.llm()[1], "bin")
    config = json.loads((source / "config.json").read_text())
    change(config)
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=words):
        import_weights("mplug-owl", source, tools.tmp_path / "run")


def test_a_pickle_is_never_run(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tools.tmp_path)
    source = write(tools, tools.llm()[1], "bin")
    torch.save({"x": tools.foreign()}, source / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="not a file of tensors alone"):
        import_weights("mplug-owl", source, tools.tmp_path / "run")
    assert not (tools.tmp_path / "executed").exists()
