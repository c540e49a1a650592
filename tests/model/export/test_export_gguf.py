"""The files for llama.cpp, read back: image tokens by its graph written out, the LLM by transformers."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from prismcap.configs.errors import ConfigError
from prismcap.data.image import to_tiles
from prismcap.model.gguf.export import caption_line, export_gguf
from prismcap.model.gguf.language import write_language
from prismcap.model.gguf.tokenizer import LLAMA_3, QWEN_2, add_tokenizer
from prismcap.model.hf.files import read_marker
from prismcap.scripts.commands.caption import find_model

TEXTS = ["Describe the picture.", "  What's on\n\nthe left? <b>", "Größe, naïve: 東京 🙂", "a  b\tc"]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keys and tensors of a GGUF file."""
    reader: Any = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = torch.tensor(values).reshape([int(size) for size in reversed(tensor.shape)])
    return fields, tensors


def norm(x: Tensor, w: dict[str, Tensor], name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return torch.einsum("kd,ed->ke", x, w[f"{name}.weight"]) + w[f"{name}.bias"]


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def exact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def attention(x: Tensor, w: dict[str, Tensor], block: str, num_heads: int) -> Tensor:
    query, key, value = (linear(x, w, f"{block}.attn_{part}") for part in "qkv")
    size = x.shape[-1] // num_heads
    found = []
    for start in range(0, x.shape[-1], size):
        head = slice(start, start + size)
        scores = torch.einsum("qf,kf->qk", query[:, head], key[:, head]) / size**0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        found.append(torch.einsum("qk,kf->qf", weights, value[:, head]))
    return linear(torch.cat(found, dim=-1), w, f"{block}.attn_out")


def image_tokens(fields: dict[str, Any], w: dict[str, Tensor], pixels: Tensor, gelu: Any) -> Tensor:
    """[N, H] of [3, S, S]: the graph of llama.cpp's tools/mtmd/models/llava.cpp, class token first."""
    key = "clip.vision."
    patch, eps = fields[f"{key}patch_size"], fields[f"{key}attention.layer_norm_epsilon"]
    side = fields[f"{key}image_size"] // patch
    rows = []
    for y in range(0, side * patch, patch):
        for x in range(0, side * patch, patch):
            cut = pixels[:, y : y + patch, x : x + patch]
            rows.append(torch.einsum("ecyx,cyx->e", w["v.patch_embd.weight"], cut))
    h = torch.stack(rows) + w.get("v.patch_embd.bias", torch.zeros(()))
    if "v.class_embd" in w:
        h = torch.cat([w["v.class_embd"][None], h])
    h = h + w["v.position_embd.weight"]
    if "v.pre_ln.weight" in w:
        h = norm(h, w, "v.pre_ln", eps)
    layers, read_states = fields[f"{key}feature_layer"], []
    for index in range(max(layers)):
        if index in layers:
            read_states.append(h)
        block = f"v.blk.{index}"
        h = h + attention(norm(h, w, f"{block}.ln1", eps), w, block, fields[f"{key}attention.head_count"])
        inner = linear(norm(h, w, f"{block}.ln2", eps), w, f"{block}.ffn_up")
        inner = tanh_gelu(inner) if fields["clip.use_gelu"] else inner * torch.sigmoid(1.702 * inner)
        h = h + linear(inner, w, f"{block}.ffn_down")
    assert "v.post_ln.weight" not in w, "llama.cpp would apply it"
    features = torch.cat([*read_states, h], dim=-1)
    if "v.class_embd" in w:
        features = features[1:]
    return linear(gelu(linear(features, w, "mm.0")), w, "mm.2")


TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip": ("siglip-mlp", {}),
    "siglip-last": ("siglip-mlp", {"layer": -1}),
    "clip": ("clip-mlp", {}),
    "clip-layers": ("clip-mlp", {"layer": [1, -1], "image_size": 48}),
}


def make(tools: Any, cases: Any, name: str, tokenizer: Any = None) -> tuple[Any, Any]:
    kind, options = TOWERS[name]
    kind = tools.kinds[kind]
    kind = replace(kind, vision_encoder=kind.vision_encoder | options)
    return tools.make_captioner(kind, tokenizer or cases.tokenizer), tools.make_info(
        tools.make_template("chatml")
    )


@pytest.mark.parametrize("name", list(TOWERS))
def test_image_tokens_of_the_file_are_the_captioners(
    name: str, tools: Any, cases: Any, tmp_path: Path
) -> None:
    captioner, info = make(tools, cases, name)
    folder = export_gguf(captioner, tmp_path / "gguf", image_spec=captioner.image_spec, info=info)
    fields, tensors = read(folder / "mmproj.gguf")
    assert (fields["general.architecture"], fields["clip.projector_type"]) == ("clip", "mlp")
    assert fields["clip.vision.block_count"] == max(captioner.vision_encoder.layers_read)
    tiles = to_tiles(tools.picture(50, 40), captioner.image_spec)
    with torch.no_grad():
        expected = captioner.connector(captioner.encode_images(tiles))[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(
        image_tokens(fields, tensors, tiles[0], exact_gelu), expected, atol=2e-5, rtol=1e-4
    )
    # what llama.cpp computes
    assert (image_tokens(fields, tensors, tiles[0], tanh_gelu) - expected).abs().max() < 1e-2
    mean = torch.tensor(fields["clip.vision.image_mean"])
    assert torch.allclose(mean, torch.tensor(captioner.image_spec.mean))


# what transformers' reader takes from the file: no biases, and of qwen3 no head size but its default
LLMS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-heads": {"head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", list(LLMS))
def test_transformers_reads_the_same_llm(name: str, tied: bool, cases: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(cases.tokenizer)
    config = AutoConfig.for_model(
        name.partition("-")[0],
        vocab_size=len(tokenizer) + 5,  # rows without a token
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        **LLMS[name],
    )
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for value in llm.parameters():
            if value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.1)
    write_language(tmp_path / "model.gguf", llm, tokenizer, "{{ 1 }}", "tiny", "fp32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    ids = torch.randint(0, len(tokenizer), (2, 60))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, llm(ids).logits, atol=3e-5, rtol=1e-4)
    fields, tensors = read(tmp_path / "model.gguf")
    assert ("output.weight" in tensors) != tied
    assert len(fields["tokenizer.ggml.tokens"]) == config.vocab_size
    assert fields["tokenizer.chat_template"] == "{{ 1 }}"


def test_rows_of_a_llamas_heads_lie_in_pairs(tmp_path: Path, cases: Any) -> None:
    """Row i of the first half of a head beside row i of the second: what llama.cpp rotates together."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    llm = AutoModelForCausalLM.from_config(config)
    attention = llm.model.layers[0].self_attn
    for layer in (attention.q_proj, attention.k_proj):
        torch.nn.init.normal_(layer.bias)
    write_language(
        tmp_path / "a.gguf", llm, AutoTokenizer.from_pretrained(cases.tokenizer), "", "tiny", "fp32"
    )
    _, tensors = read(tmp_path / "a.gguf")
    for name, layer in (("q", attention.q_proj), ("k", attention.k_proj)):
        for part in ("weight", "bias"):
            own, found = getattr(layer, part), tensors[f"blk.0.attn_{name}.{part}"]
            for start in range(0, len(own), 8):
                for i in range(4):
                    assert torch.equal(found[start + 2 * i], own[start + i])
                    assert torch.equal(found[start + 2 * i + 1], own[start + 4 + i])


LETTERS_DIGITS = r" ?\p{L}+|\p{N}"
CUTS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(QWEN_2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "": [
        pre_tokenizers.Split(Regex(LETTERS_DIGITS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


@pytest.mark.parametrize("name", list(CUTS))
def test_how_text_is_cut_has_llama_cpps_name(name: str, tmp_path: Path) -> None:
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.Sequence(CUTS[name])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    writer = gguf.GGUFWriter(tmp_path / "tokenizer.gguf", "llama")
    if not name:
        with pytest.raises(ConfigError, match="cuts text by"):
            add_tokenizer(writer, tokenizer, 256)
        return
    add_tokenizer(writer, tokenizer, 256)
    assert writer.kv_data[0]["tokenizer.ggml.pre"].value == name
    cut = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("in 12345")]
    digits = {"gpt-2": 1, "smollm": 5, "llama-bpe": 2, "qwen2": 5}
    assert sum(any(letter.isdigit() for letter in piece) for piece in cut) == digits[name]


def test_transformers_reads_the_same_tokenizer(tools: Any, cases: Any, tmp_path: Path) -> None:
    captioner, info = make(tools, cases, "siglip", tools.real_tokenizer)
    folder = export_gguf(captioner, tmp_path / "gguf", image_spec=captioner.image_spec, info=info)
    fields, _ = read(folder / "model.gguf")
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    again = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    own = captioner.tokenizer
    for text in TEXTS:
        assert again.encode(text, add_special_tokens=False) == own.encode(text, add_special_tokens=False)
    control = gguf.TokenType.CONTROL
    kinds = fields["tokenizer.ggml.token_type"]
    special = {index for index, token in own.added_tokens_decoder.items() if token.special}
    assert {index for index, kind in enumerate(kinds) if kind == control} == special


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """BPE over characters with byte fallback; a merge for every way in which a token can be put together."""
    words = [
        "▁th",
        "▁the",
        "he",
        "▁pic",
        "ture",
        "▁picture",
        "is",
        "▁is",
        "re",
        "ed",
        "▁red",
        "the",
        "in",
        "▁in",
    ]
    letters = sorted(set("".join(words)) | set("abdfglmnosw."))
    marks = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = ["▁t", "tu", "tur", "▁p", "▁pi", "pi", "pic", "▁r", "▁i", *words]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*marks, *letters, *pieces]))}
    merges = [
        (token[:cut], token[cut:])
        for token in dict.fromkeys(pieces)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def joined_by_score(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """SentencePiece's BPE: the neighbours with the best score, the leftmost of equals, until none is left."""
    ids = {token: index for index, token in enumerate(tokens)}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(-scores[ids[a + b]], place) for place, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        place = min(pairs)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    found: list[int] = []
    for part in parts:
        found += [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


def test_scores_join_pieces_as_the_merges_do(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    rows = len(tokenizer)
    writer = gguf.GGUFWriter(tmp_path / "tokenizer.gguf", "llama")
    add_tokenizer(writer, tokenizer, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields, _ = read(tmp_path / "tokenizer.gguf")
    assert fields["tokenizer.ggml.model"] == "llama" and fields["tokenizer.ggml.add_space_prefix"]
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    for text in ("the picture is red", "there is in the pin", "theretured", "Ünder the picture"):
        assert joined_by_score(text, tokens, scores) == tokenizer.encode(text, add_special_tokens=False)
    kinds = fields["tokenizer.ggml.token_type"]
    expected = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.BYTE]
    assert kinds[:4] == expected and kinds[-1] == gguf.TokenType.NORMAL


def test_bf16_rounds_matrices_alone(tools: Any, cases: Any, tmp_path: Path) -> None:
    captioner, info = make(tools, cases, "siglip")
    folder = export_gguf(
        captioner, tmp_path / "gguf", image_spec=captioner.image_spec, info=info, precision="bf16"
    )
    reader: Any = gguf.GGUFReader(folder / "mmproj.gguf")
    rounded = {
        tensor.name for tensor in reader.tensors if tensor.tensor_type == gguf.GGMLQuantizationType.BF16
    }
    assert "mm.0.weight" in rounded and "v.blk.0.ffn_up.weight" in rounded
    assert not {"v.patch_embd.weight", "v.position_embd.weight", "mm.0.bias"} & rounded
    _, tensors = read(folder / "mmproj.gguf")
    assert torch.equal(tensors["mm.0.weight"], captioner.connector.layers[0].weight.bfloat16().float())


def test_the_folder_says_what_it_is(tools: Any, cases: Any, tmp_path: Path) -> None:
    captioner, info = make(tools, cases, "clip")
    for _ in range(2):  # an older export is replaced
        folder = export_gguf(captioner, tmp_path / "gguf", image_spec=captioner.image_spec, info=info)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.gguf", "mmproj.gguf", "prismcap.json", "README.md"}
    assert read_marker(folder)["format"] == "gguf"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "squashed to a square" in card and "class token" in card
    line = caption_line(Path("a b"), "What's it?", ["</s>", "\n\n"])
    assert shlex.split(line)[:3] == ["llama-mtmd-cli", "-m", "a b/model.gguf"]
    assert shlex.split(line)[-6:] == ["-p", "What's it?", "-r", "</s>", "-r", "\n\n"]
    assert caption_line(Path(), info.prompt, info.stop) in card and "--temp 0" in card
    with pytest.raises(ConfigError, match=r"for llama\.cpp"):
        find_model(str(folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("siglip-last-linear", "no plain MLP"),
        ("timm-patch_concat", "neither CLIP nor SigLIP"),
        ("clip-normed", "post_layernorm"),
        ("clip-deep", "no plain MLP"),
        ("siglip-first_patch", r"leaves out its first patch \(drop_first_patch\)"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_named(name: str, words: str, cases: Any, tmp_path: Path) -> None:
    case = cases[name]
    with pytest.raises(ConfigError, match=words):
        export_gguf(case.captioner, tmp_path / "gguf", image_spec=case.image_spec, info=case.info)
    assert not list(tmp_path.iterdir())


def test_unknown_llms_and_tokenizers_are_refused(
    tools: Any, cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner, _ = make(tools, cases, "siglip")
    llm, tokenizer = captioner.llm, captioner.tokenizer
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=300)
    other = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match="the LLM is a gpt2"):
        write_language(tmp_path / "a.gguf", other, tokenizer, "", "x", "fp32")
    monkeypatch.setitem(llm.config.rope_parameters, "rope_type", "yarn")
    with pytest.raises(ConfigError, match="rope_type is yarn"):
        write_language(tmp_path / "b.gguf", llm, tokenizer, "", "x", "fp32")
    strange = Tokenizer(BPE({"a": 0, "b": 1}, []))
    fast = PreTrainedTokenizerFast(tokenizer_object=strange)
    with pytest.raises(ConfigError, match="neither on bytes nor with byte fallback"):
        add_tokenizer(gguf.GGUFWriter(tmp_path / "c.gguf", "llama"), fast, 2)
