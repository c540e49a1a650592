"""Small tokenizers of bytes, made here: nothing is downloaded, and the same texts give the same tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

# the marks of every template that a recipe has; `<s>` opens texts and `</s>` ends them, as LLaMA's
MARKS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
MAX_TOKENS = 8192  # more than any language is given here: merging ends when every word is one token


def write_byte_tokenizer(folder: Path, texts: Iterable[str] = ()) -> None:
    """A token for every byte, the marks, and byte pairs merged until each word of `texts` is one token.

    With no texts nothing is merged. Any text can be written, and read back to the letter.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate([*MARKS, *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = list(texts)
    if texts:
        trainer = trainers.BpeTrainer(
            vocab_size=MAX_TOKENS,
            special_tokens=list(MARKS),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(MARKS))
    unknown, start, end = MARKS[:3]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
        pad_token=unknown,
    )
    fast.save_pretrained(folder)
