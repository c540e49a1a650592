"""A fast tokenizer of transformers in the words of GGUF: byte-level BPE, and BPE of SentencePiece.

llama.cpp knows how text is cut before BPE by a name (`tokenizer.ggml.pre`, from its convert_hf_to_gguf.py).
An unknown one is refused, since the model would read other tokens than in training.
"""

from __future__ import annotations

import json
import re
from typing import Any

import gguf

from prismcap.configs.errors import ConfigError
from prismcap.model.gguf.writing import REMEDY

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
# how a byte-level tokenizer cuts text: a regular expression, digits one by one, GPT-2's own expression
CUTS = {
    ("gpt-2",): "gpt-2",
    ("digits", "gpt-2"): "smollm",
    (LLAMA_3, "bytes"): "llama-bpe",
    (QWEN_2, "bytes"): "qwen2",
}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def add_tokenizer(writer: Any, tokenizer: Any, rows: int) -> None:
    """Tokens up to the LLM's `rows` embeddings, their types, merges or scores, special ids.

    Raises ConfigError for a tokenizer that llama.cpp does not read as transformers does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown(f"{type(tokenizer).__name__} has no tokenizer.json")
    layout = json.loads(backend.to_str())
    model = layout["model"]
    if model["type"] != "BPE":
        raise _unknown(f"its model is {model['type']}, not BPE")
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    tokens, types = _tokens(tokenizer, layout, rows)
    steps = _steps(layout["pre_tokenizer"])
    if any(step["type"] == "ByteLevel" for step in steps):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(steps, layout["normalizer"]))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    elif model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_prepends_space(layout["normalizer"], steps))
    else:
        raise _unknown("its BPE works neither on bytes nor with byte fallback")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, tokenizer)


def _unknown(why: str) -> ConfigError:
    return ConfigError(f"--format gguf: the LLM's tokenizer cannot be said in GGUF: {why}; {REMEDY}")


def _tokens(tokenizer: Any, layout: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types by id; ids without a token get an unused one."""
    by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    added = {token["id"]: token["special"] for token in layout["added_tokens"]}
    unknown, by_pieces = layout["model"].get("unk_token"), bool(layout["model"].get("byte_fallback"))
    tokens, types = [], []
    for index in range(rows):
        text = by_id.get(index)
        if text is None:
            tokens.append(f"[PAD{index}]")
            types.append(int(gguf.TokenType.UNUSED))
            continue
        if text == unknown and by_pieces:
            kind = gguf.TokenType.UNKNOWN
        elif index in added:
            kind = gguf.TokenType.CONTROL if added[index] else gguf.TokenType.USER_DEFINED
        elif by_pieces and BYTE.fullmatch(text):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL
        if kind == gguf.TokenType.USER_DEFINED and by_pieces:  # found in the text before spaces are replaced
            text = text.replace("▁", " ")
        tokens.append(text)
        types.append(int(kind))
    return tokens, types


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    steps: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return steps


def _cut(steps: list[dict[str, Any]], normalizer: dict[str, Any] | None) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text."""
    kinds: list[str] = []
    for step in steps:
        if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            kinds.append("gpt-2" if step.get("use_regex", True) else "bytes")
        elif step["type"] == "Digits" and step.get("individual_digits"):
            kinds.append("digits")
        elif step["type"] == "Split" and step.get("behavior") == "Isolated":
            kinds.append(str(step["pattern"].get("Regex")))
        else:
            kinds.append(json.dumps(step))
    name = CUTS.get(tuple(kinds))
    if name is None:
        raise _unknown(f"it cuts text by {kinds}")
    if normalizer is not None and normalizer["type"] != "NFC":  # llama.cpp takes text as composed already
        raise _unknown(f"it normalises text by {normalizer['type']}")
    return name


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """SentencePiece joins the pair with the highest score first: minus the rank of the first merge to it."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _prepends_space(normalizer: dict[str, Any] | None, steps: list[dict[str, Any]]) -> bool:
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if any(part["type"] == "Prepend" for part in parts):
        return True
    spaces = [step for step in steps if step["type"] == "Metaspace"]
    return any(step.get("prepend_scheme", "always") != "never" for step in spaces)


def _add_special(writer: Any, tokenizer: Any) -> None:
    setters = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, add in setters.items():
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            add(index)
    ids = tokenizer.encode("a")
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)
