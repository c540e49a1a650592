"""InternLM2 converted: equal to its own mathematics written out, loaded without remote code, or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from internlm2_files import NAMES, UNUSED, InternLM2, make_internlm2, vocabulary
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Component
from prismcap.data.encode import build_encoder
from prismcap.data.schema import TokenSpec
from prismcap.model.convert import internlm2
from prismcap.model.convert.internlm2 import MARKER, convert_internlm2
from prismcap.model.llm import causal_lm
from prismcap.scripts.cli import cli
from prismcap.train.doctor.chat_template import check_template

LAYOUTS = ["safetensors", "sharded-safetensors", "bin", "sharded-bin"]
CHAT_TEMPLATE = "{{ messages[0]['content'] }}"
IDS = torch.randint(0, len(vocabulary()), (11,), generator=torch.Generator().manual_seed(2))


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor, theta: float) -> Tensor:
    """[T, heads, D]: the two halves of a head are real and imaginary part, position t turns pair i."""
    width = x.shape[-1]
    speed = theta ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    angle = (torch.arange(len(x), dtype=x.dtype)[:, None] * speed)[:, None]
    real, imaginary = x.chunk(2, dim=-1)
    turned = (real * angle.cos() - imaginary * angle.sin(), imaginary * angle.cos() + real * angle.sin())
    return torch.cat(turned, dim=-1)


def logits_of(model: InternLM2, ids: Tensor) -> Tensor:
    """InternLM2 as published, in float64: attention reads q, k and v out of the packed projection."""
    config, zero = model.config, torch.zeros(())
    weights = {name: value.double() for name, value in model.weights.items()}
    num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    group, width = num_heads // num_kv_heads, config["hidden_size"] // num_heads
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    future = torch.ones(len(ids), len(ids)).triu(1).bool()
    x = weights["model.tok_embeddings.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, weights[f"{at}attention_norm.weight"], eps)
        packed = h @ weights[f"{at}attention.wqkv.weight"].T + weights.get(f"{at}attention.wqkv.bias", zero)
        packed = packed.view(len(ids), num_kv_heads, group + 2, width)
        q = rotate(packed[:, :, :group].reshape(len(ids), num_heads, width), theta)
        k, v = rotate(packed[:, :, -2], theta), packed[:, :, -1]
        heads = []
        for head in range(num_heads):
            scores = q[:, head] @ k[:, head // group].T / math.sqrt(width)
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, head // group])
        mixed = torch.cat(heads, dim=-1)
        x = x + mixed @ weights[f"{at}attention.wo.weight"].T + weights.get(f"{at}attention.wo.bias", zero)
        h = norm(x, weights[f"{at}ffn_norm.weight"], eps)
        gate, up, down = (weights[f"{at}feed_forward.w{i}.weight"] for i in (1, 3, 2))
        x = x + (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T
    return norm(x, weights["model.norm.weight"], eps) @ weights["output.weight"].T


def converted_logits(folder: Path) -> Tensor:
    """Also sees that no weight was started at random, none left over."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model.eval()(input_ids=IDS[None]).logits[0].double()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_logits_are_those_of_the_packed_model(
    tmp_path: Path, num_heads: int, num_kv_heads: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_internlm2(num_heads, num_kv_heads, bias)
    source = model.write(tmp_path / "source")
    (note,) = convert_internlm2(source, tmp_path / "llama", CHAT_TEMPLATE)
    assert "rope_scaling" in note and "64" in note
    expected = logits_of(model, IDS)
    torch.testing.assert_close(converted_logits(tmp_path / "llama"), expected, rtol=1e-4, atol=1e-4)

    # planted fault: each group read as its key, its query heads, its value
    def key_first(name: str, packed: Tensor, config: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
        rows = packed.unflatten(0, (num_kv_heads, -1, config.head_dim))
        k, q, v = rows.split([1, num_heads // num_kv_heads, 1], dim=1)
        return q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2)

    monkeypatch.setattr(internlm2, "split_wqkv", key_first)
    convert_internlm2(source, tmp_path / "wrong", CHAT_TEMPLATE)
    assert not torch.allclose(converted_logits(tmp_path / "wrong"), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_of_the_files_gives_the_same_model(tmp_path: Path, layout: str) -> None:
    model = make_internlm2(dtype=torch.bfloat16)
    convert_internlm2(model.write(tmp_path / "source", layout), tmp_path / "llama", CHAT_TEMPLATE)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype="auto")
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
    # bit for bit: nothing is computed
    assert torch.equal(loaded.model.embed_tokens.weight, model.weights["model.tok_embeddings.weight"])
    for layer, block in enumerate(loaded.model.layers):
        at = f"model.layers.{layer}."
        assert torch.equal(block.mlp.down_proj.weight, model.weights[f"{at}feed_forward.w2.weight"])
        rows = [block.self_attn.q_proj.weight, block.self_attn.k_proj.weight, block.self_attn.v_proj.weight]
        q, k, v = (part.view(2, -1, 8, 32) for part in rows)
        packed = torch.cat([q, k, v], dim=1).flatten(0, 2)
        assert torch.equal(packed, model.weights[f"{at}attention.wqkv.weight"])
    num_files = len(list((tmp_path / "llama").glob("*.safetensors")))
    assert num_files == (2 if layout.startswith("sharded") else 1)


def test_tensors_that_share_memory_or_lie_transposed(tmp_path: Path) -> None:
    model = make_internlm2()
    embedding = model.weights["model.tok_embeddings.weight"]
    model.weights["output.weight"] = embedding
    name = "model.layers.0.feed_forward.w1.weight"
    model.weights[name] = model.weights[name].T.contiguous().T
    convert_internlm2(model.write(tmp_path / "source", "bin"), tmp_path / "llama", CHAT_TEMPLATE)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert torch.equal(loaded.lm_head.weight, embedding)
    assert torch.equal(loaded.model.layers[0].mlp.gate_proj.weight, model.weights[name])


def test_the_command_and_what_loads_it(tmp_path: Path) -> None:
    source = make_internlm2().write(tmp_path / "source")
    target = tmp_path / "llama"
    done = CliRunner().invoke(cli, ["convert", "internlm2", str(source), str(target)], catch_exceptions=False)
    assert done.exit_code == 0 and "Note: rope_scaling" in done.output, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "source"]
    assert not list(target.glob("*.py")) and "auto_map" not in (target / "config.json").read_text()

    llm = causal_lm.build(causal_lm.Options(path=str(target)))
    assert llm.model.config.model_type == "llama"
    size = len(vocabulary())
    assert llm.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"]) == [size - 2, size - 1]
    assert llm.tokenizer.pad_token == "</s>" and llm.tokenizer("a")["input_ids"][0] == 1
    assert GenerationConfig.from_pretrained(target).eos_token_id == [2, size - 2]
    # the template of its name writes what the tokenizer's own writes, with ids of the embedding
    encoder = build_encoder(Component(name="internlm2"), llm.tokenizer, TokenSpec(1), 512)
    (finding,) = check_template("sft", encoder)
    assert finding.level == "ok" and finding.what.endswith("own chat template"), finding.what
    for text in (" the cats", "there  cat\n", "Ünused"):
        ids = llm.tokenizer(text)["input_ids"]
        assert max(ids) < size and llm.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_chat_template(tmp_path: Path) -> None:
    def template_of(model: InternLM2, name: str) -> Any:
        convert_internlm2(model.write(tmp_path / name), tmp_path / f"{name}-llama", CHAT_TEMPLATE)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / f"{name}-llama")
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
        return tokenizer.chat_template

    model = make_internlm2()
    assert template_of(model, "named") == CHAT_TEMPLATE
    model.tokenizer["chat_template"] = "{{ bos_token }}own"
    assert template_of(model, "own") == "{{ bos_token }}own"
    base = make_internlm2()
    base.tokenizer = {"bos_token": "<s>", "tokenizer_class": "InternLM2Tokenizer"}
    assert template_of(base, "base") is None


def test_tokenizer_json_is_taken_as_it_is(tmp_path: Path) -> None:
    model = make_internlm2()
    convert_internlm2(model.write(tmp_path / "source"), tmp_path / "first", CHAT_TEMPLATE)
    fast = (tmp_path / "first" / "tokenizer.json").read_text()
    (tmp_path / "source" / "tokenizer.json").write_text(fast)
    (tmp_path / "source" / "tokenizer.model").unlink()
    convert_internlm2(tmp_path / "source", tmp_path / "second", CHAT_TEMPLATE)
    assert json.loads((tmp_path / "second" / "tokenizer.json").read_text()) == json.loads(fast)
    (tmp_path / "source" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer: expected"):
        convert_internlm2(tmp_path / "source", tmp_path / "third", CHAT_TEMPLATE)


def without(model: InternLM2, name: str) -> None:
    del model.weights[name]


def with_weight(model: InternLM2, name: str, *shape: int) -> None:
    model.weights[name] = torch.zeros(shape)


WQKV = "model.layers.1.attention.wqkv.weight"
FAULTS: dict[str, tuple[Any, str]] = {
    "missing": (lambda m: without(m, "model.layers.0.feed_forward.w3.weight"), "1 missing: .*0.mlp.up_proj"),
    "no wqkv": (lambda m: without(m, WQKV), "3 missing: .*k_proj.*q_proj.*v_proj"),
    "unknown": (
        lambda m: with_weight(m, "model.layers.0.attention.wqkx.weight", 2),
        "not InternLM2's: .*wqkx",
    ),
    "adapter": (lambda m: with_weight(m, "plora.weight", 2), "1 not InternLM2's: plora.weight"),
    "a layer more": (lambda m: with_weight(m, "model.layers.2.ffn_norm.weight", 32), "1 more than.*layers.2"),
    "bias": (lambda m: with_weight(m, "model.layers.0.attention.wo.bias", 32), "1 more than.*o_proj.bias"),
    "shape": (lambda m: with_weight(m, "model.norm.weight", 31), r"model.norm.weight \[31\], not \[32\]"),
    "packed": (lambda m: with_weight(m, WQKV, 60, 32), "wqkv.weight has 60 rows: 4 query heads and 2"),
    "type": (lambda m: m.config.update(model_type="llama"), "model_type is 'llama'"),
    "key": (lambda m: m.config.pop("bias"), "config.json: no value for bias"),
    "rope": (
        lambda m: m.config.update(rope_scaling={"type": "linear", "factor": 2}),
        "rope_scaling is .*linear",
    ),
    # the marks are known, their ids are not: they would be added at the end
    "past": (lambda m: m.tokenizer.pop("added_tokens_decoder"), "6 tokens past the embedding's"),
    "far": (
        lambda m: m.tokenizer["added_tokens_decoder"].update(
            {"92543": {"content": "<|x|>", "special": True}}
        ),
        "should have id 92543",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    model = make_internlm2()
    plant, words = FAULTS[fault]
    plant(model)
    source = model.write(tmp_path / "source")
    with pytest.raises(ConfigError, match=words):
        convert_internlm2(source, tmp_path / "llama", CHAT_TEMPLATE)
    assert [path.name for path in tmp_path.iterdir()] == ["source"], "nothing is left behind"


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = make_internlm2().write(tmp_path / "source", "sharded-bin")
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ConfigError, match="not all of its files lie beside it: pytorch_model-00002"):
        convert_internlm2(source, tmp_path / "llama", CHAT_TEMPLATE)
    index = source / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.bin"}}))
    (tmp_path / "elsewhere.bin").touch()
    with pytest.raises(ConfigError, match=r"lie beside it: \.\./elsewhere\.bin"):
        convert_internlm2(source, tmp_path / "llama", CHAT_TEMPLATE)
    index.unlink()
    with pytest.raises(ConfigError, match=r"no weights: expected model\.safetensors or"):
        convert_internlm2(source, tmp_path / "llama", CHAT_TEMPLATE)
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        convert_internlm2(tmp_path / "nowhere", tmp_path / "llama", CHAT_TEMPLATE)


class Foreign:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = make_internlm2().write(tmp_path / "source", "bin")
    for content in ({"x": Foreign()}, {"x": 3}):
        torch.save(content, source / "pytorch_model.bin")
        with pytest.raises(ConfigError, match=r"pytorch_model\.bin: "):
            convert_internlm2(source, tmp_path / "llama", CHAT_TEMPLATE)
    (source / "pytorch_model.bin").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ConfigError, match="not a file of tensors alone"):
        convert_internlm2(source, tmp_path / "llama", CHAT_TEMPLATE)
    assert not (tmp_path / "executed").exists()


def test_only_a_conversion_is_replaced_and_only_by_force(tmp_path: Path) -> None:
    source, target = make_internlm2().write(tmp_path / "source"), tmp_path / "llama"
    convert_internlm2(source, target, CHAT_TEMPLATE)
    (target / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds an older conversion; --force"):
        convert_internlm2(source, target, CHAT_TEMPLATE)
    assert (target / "note.txt").is_file()
    convert_internlm2(source, target, CHAT_TEMPLATE, force=True)
    assert (target / MARKER).is_file() and not (target / "note.txt").exists()
    with pytest.raises(ConfigError, match="left alone"):
        convert_internlm2(source, source, CHAT_TEMPLATE, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "source"]


def test_names_of_the_marks_are_not_pieces(tmp_path: Path) -> None:
    convert_internlm2(make_internlm2().write(tmp_path / "source"), tmp_path / "llama", CHAT_TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    size = len(vocabulary())
    assert tokenizer.convert_tokens_to_ids(NAMES) == list(range(size - len(NAMES), size))
    assert not set(UNUSED) & tokenizer.get_vocab().keys()
    assert set(NAMES) <= set(tokenizer.all_special_tokens)
