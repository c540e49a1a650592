"""InternLM2's tokenizer as a fast one of transformers', without the code that comes with the model.

The trap in it: ids 92538 to 92543 are unused pieces of tokenizer.model, and only added_tokens_decoder of
tokenizer_config.json makes them `<|im_start|>` and its like. A tokenizer that adds those marks anew gives
them ids past the end of the embedding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from prismcap.configs.errors import ConfigError
from prismcap.model.convert.checkpoint import read_json
from prismcap.model.convert.sentencepiece import fast_tokenizer, read_sentencepiece
from prismcap.model.hf.files import write_json

START, END = "<|im_start|>", "<|im_end|>"
# where tokenizer_config.json does not say; pad: the default of InternLM2's tokenizer class
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}


def build_tokenizer(source: Path, vocab_size: int, chat_template: str) -> PreTrainedTokenizerFast:
    """From tokenizer.json, else tokenizer.model, with its own chat template where it has one.

    `chat_template` is for a tokenizer that has chat marks and no template; a base model's has neither.
    Raises ConfigError when there is no tokenizer, or an id of it is not below vocab_size.
    """
    settings = read_json(source / "tokenizer_config.json")
    special = {key: _text(settings.get(key) or default) for key, default in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_backend(source, settings, special["bos_token"]),
        **special,
        additional_special_tokens=[_text(token) for token in settings.get("additional_special_tokens") or []],
        clean_up_tokenization_spaces=False,
    )
    past = {token: i for token, i in tokenizer.get_vocab().items() if i >= vocab_size}
    if past:
        token, i = max(past.items(), key=lambda item: item[1])
        raise ConfigError(
            f"{source}: the tokenizer has {len(past)} tokens past the embedding's {vocab_size} rows, such as "
            f"{token!r} with id {i}: are tokenizer and weights of the same model, and are its own tokens in "
            "added_tokens_decoder of tokenizer_config.json?"
        )
    own = source / "chat_template.jinja"
    found = own.read_text(encoding="utf-8") if own.is_file() else settings.get("chat_template")
    has_marks = {START, END} <= tokenizer.get_vocab().keys()
    tokenizer.chat_template = found or (chat_template if has_marks else None)
    return tokenizer


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Files that transformers 4.57 reads as well as 5.x."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["additional_special_tokens"] = config.pop("extra_special_tokens", [])
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, config)


def _backend(source: Path, settings: dict[str, Any], bos: str) -> Tokenizer:
    if (source / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(source / "tokenizer.json"))
    if not (source / "tokenizer.model").is_file():
        raise ConfigError(f"{source}: no tokenizer: expected tokenizer.json or tokenizer.model")
    named = {int(i): AddedToken(**token) for i, token in settings.get("added_tokens_decoder", {}).items()}
    backend = fast_tokenizer(read_sentencepiece(source / "tokenizer.model"), named)
    bos_id = backend.token_to_id(bos)
    if settings.get("add_bos_token", True) and bos_id is not None:
        single = f"{bos} $A"
        backend.post_processor = processors.TemplateProcessing(single, f"{single} {bos} $B", [(bos, bos_id)])
    return backend


def _text(token: str | dict[str, Any]) -> str:
    """A token's text; tokenizer_config.json may hold it with its flags."""
    return token if isinstance(token, str) else str(token["content"])
