"""What metrics of local encoders share: where a model lies, and how many tokens it reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.evaluate.metrics._contract import ItemFigure

_NO_LIMIT = 1_000_000  # tokenizers that know no limit say 10**30


def model_folder(path: str, where: str) -> Path:
    """The directory of a local model. Raises ConfigError: nothing is fetched from a hub."""
    folder = resolve_path(path)
    if not folder.is_dir():
        raise ConfigError(
            f"{where}: {path!r} is no directory. Download the model, and give the path of its folder"
        )
    return folder


def load_tokenizer(folder: Path) -> Any:
    """One that can pad. Raises ConfigError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: its tokenizer cannot be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def token_limit(tokenizer: Any, config: Any) -> int | None:
    """Tokens of a text that the model reads, special ones included; None where there is no limit."""
    limits = []
    if tokenizer.model_max_length < _NO_LIMIT:
        limits.append(int(tokenizer.model_max_length))
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # RoBERTa's kind counts positions from the padding's id on
        unused = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        limits.append(int(positions) - unused)
    return min(limits, default=None)


def too_long(tokenizer: Any, texts: Sequence[str], limit: int | None) -> list[bool]:
    """Of each text whether the model reads its beginning alone."""
    if limit is None or not texts:
        return [False] * len(texts)
    return [len(ids) > limit for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def text_cut(cut: Sequence[bool]) -> ItemFigure:
    """The figure that tells how many texts are not read to their end."""
    flags = [float(flag) for flag in cut]
    return ItemFigure("text_cut", flags, "share of texts longer than the model reads", higher_is_better=None)
