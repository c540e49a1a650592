"""A small random InternLM2 as it is published: packed wqkv, a SentencePiece file, named unused pieces."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WORDS = ["▁cat", "▁cats", "▁a", "▁ab", "▁the", "▁there", "cat", "at", "ats", "12", "123", "..."]
UNUSED = [f"[UNUSED_TOKEN_{i}]" for i in range(141, 147)]
# their names in a chat model, in the order of their ids
NAMES = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
Entry = tuple[str, float, int]


def vocabulary() -> list[Entry]:
    """(text, score, kind): special, bytes, letters, joined pieces by falling score, unused ones."""
    entries: list[Entry] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    entries += [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]
    known = {*"▁abcdefghijklmnopqrstuvwxyz1234567890.:\n"}
    joined: list[str] = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in joined:
                joined.append(word[:end])
    entries += [(text, -float(i), NORMAL) for i, text in enumerate(joined)]
    entries += [(letter, -100.0 - i, NORMAL) for i, letter in enumerate(sorted(known))]
    return entries + [(text, -1000.0, NORMAL) for text in UNUSED]


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def sentencepiece_file(entries: Sequence[Entry], dummy_prefix: bool = True, model_type: int = 2) -> bytes:
    """The protocol buffer of a tokenizer.model."""
    out = b""
    for text, score, kind in entries:
        score_field = _varint(2 << 3 | 5) + struct.pack("<f", score)
        out += _bytes(1, _bytes(1, text.encode()) + score_field + _number(3, kind))
    trainer = _bytes(2, b"a name that is not read") + _number(3, model_type) + _number(35, 1)
    normalizer = _bytes(1, b"identity") + _number(3, int(dummy_prefix)) + _number(4, 0)
    return out + _bytes(2, trainer) + _bytes(3, normalizer)


@dataclass
class InternLM2:
    """What is written; a test changes it first."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: dict[str, Any]
    pieces: list[Entry] = field(default_factory=vocabulary)

    def write(self, folder: Path, layout: str = "safetensors") -> Path:
        """layout: safetensors or bin, alone or `sharded-`."""
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        (folder / "tokenizer_config.json").write_text(json.dumps(self.tokenizer))
        (folder / "tokenizer.model").write_bytes(sentencepiece_file(self.pieces))
        (folder / "modeling_internlm2.py").write_text("raise SystemExit('remote code was run')")
        names = sorted(self.weights)
        parts = [names[::2], names[1::2]] if layout.startswith("sharded") else [names]
        stem, suffix = ("model", ".safetensors") if "safetensors" in layout else ("pytorch_model", ".bin")
        places: dict[str, str] = {}
        for number, part in enumerate(parts, 1):
            place = f"{stem}{suffix}" if len(parts) == 1 else f"{stem}-{number:05d}-of-00002{suffix}"
            shard = {name: self.weights[name] for name in part}
            if suffix == ".bin":
                torch.save(shard, folder / place)
            else:
                save_file(shard, folder / place, metadata={"format": "pt"})
            places |= dict.fromkeys(part, place)
        if len(parts) > 1:
            (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
        return folder


def make_internlm2(
    num_heads: int = 4, num_kv_heads: int = 2, bias: bool = False, dtype: torch.dtype = torch.float32
) -> InternLM2:
    """Two layers with random weights, and a chat model's tokenizer."""
    size = len(vocabulary())
    config = {
        "architectures": ["InternLM2ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
        "bias": bias,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "model_type": "internlm2",
        "num_attention_heads": num_heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": num_kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": 1000000,
        "vocab_size": size,
    }
    return InternLM2(config, random_weights(config, dtype), chat_tokenizer(size))


def random_weights(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    hidden, middle, size = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    width = hidden // config["num_attention_heads"]
    packed = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * width
    shapes: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.weight": (size, hidden),
        "model.norm.weight": (hidden,),
        "output.weight": (size, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}attention_norm.weight": (hidden,), f"{at}ffn_norm.weight": (hidden,)}
        shapes |= {
            f"{at}attention.wqkv.weight": (packed, hidden),
            f"{at}attention.wo.weight": (hidden, hidden),
        }
        shapes |= {
            f"{at}feed_forward.w1.weight": (middle, hidden),
            f"{at}feed_forward.w3.weight": (middle, hidden),
        }
        shapes |= {f"{at}feed_forward.w2.weight": (hidden, middle)}
        if config["bias"]:
            shapes |= {f"{at}attention.wqkv.bias": (packed,), f"{at}attention.wo.bias": (hidden,)}
    generator = torch.Generator().manual_seed(1)
    return {
        name: (0.3 * torch.randn(shape, generator=generator) + float("norm" in name)).to(dtype)
        for name, shape in shapes.items()
    }


def chat_tokenizer(vocab_size: int) -> dict[str, Any]:
    """tokenizer_config.json of a chat model: names for the six unused pieces at the end."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    named = {0: "<unk>", 1: "<s>", 2: "</s>"}
    named |= {vocab_size - len(NAMES) + i: name for i, name in enumerate(NAMES)}
    return {
        "added_tokens_decoder": {str(i): {"content": text, **flags} for i, text in named.items()},
        "additional_special_tokens": NAMES[::-1],
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
