"""Segments to token ids, so that text stays text and every boundary falls where training needs it.

Three things go wrong when the pieces of a conversation are handed to a tokenizer as they are:
- text that says `<|im_end|>` becomes the token, and a data file can forge turns. Here only the
  template's own marks become special tokens;
- tokenizers of the SentencePiece family put a space before every text they are given, also where a
  piece goes on in the middle of a line. Here a piece that continues a line gets none;
- a token that straddles prompt and answer cannot be masked. Here the two are never tokenised as one.
Whole lines are tokenised as the tokenizer itself would: on ordinary text the ids are those of the
Hugging Face chat template (tests/data/test_encode.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import SampleRejected, Segment


@dataclass(frozen=True)
class Piece:
    """Token ids of one run of text or one mark, or the place of a picture (then ids is empty)."""

    ids: tuple[int, ...] = ()
    train: bool = False
    image: int | None = None


class SegmentTokenizer:
    """Wraps a fast tokenizer of transformers. `marks` are the special texts of the template in use.

    Raises ConfigError when the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, marks: frozenset[str]) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if tokenizer is None:
            raise ConfigError("the LLM has no tokenizer: data cannot be encoded. Give the llm one.")
        if backend is None:
            name = type(tokenizer).__name__
            raise ConfigError(
                f"tokenizer {name} has no fast form (tokenizer.json): convert it before training"
            )
        self.tokenizer = tokenizer
        layout = json.loads(backend.to_str())
        layout.update(truncation=None, padding=None)
        reserved = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        for token in layout["added_tokens"]:
            # a mark that was added as an ordinary token would be found in text all the same;
            # a newline that ends a caption is a mark too, but any text may hold one
            if token["content"] in marks and token["content"].strip():
                token["special"] = True
                reserved.add(token["id"])
        self._reserved = frozenset(reserved)
        self._at_start = Tokenizer.from_str(json.dumps(layout))
        self._after_mark = _with_prefix_on(layout, {"always"}, self._at_start)
        self._continuing = _with_prefix_on(layout, set(), self._at_start)
        self._mark_ids = {mark: self._mark_id(mark) for mark in sorted(marks)}
        self.bos_ids = self._opening_ids()

    def pieces(self, segments: Sequence[Segment]) -> Iterator[Piece]:
        """Pieces in order. The ids of a picture's place are left to the caller, who knows their number.

        Raises SampleRejected("mark_in_text") when a text cannot be kept from becoming a special token.
        """
        backend = self._at_start
        for image, train, mark, text in _runs(segments):
            if image is not None:
                yield Piece(image=image)
                backend = self._after_mark
            elif mark:
                yield Piece((self._mark_ids[text],), train)
                backend = self._after_mark
            else:
                yield Piece(self._text_ids(backend, text), train)
                backend = self._continuing

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _text_ids(self, backend: Tokenizer, text: str) -> tuple[int, ...]:
        # set for each call: pickling a tokenizer (for a loader worker) does not keep it
        backend.encode_special_tokens = True
        ids = tuple(backend.encode(text, add_special_tokens=False).ids)
        if not self._reserved.isdisjoint(ids):
            found = self.decode([token for token in ids if token in self._reserved])
            raise SampleRejected(
                "mark_in_text", f"the text holds {found!r}, which this tokenizer reads as a mark"
            )
        return ids

    def _mark_id(self, mark: str) -> int:
        known = self._at_start.token_to_id(mark)
        if known is not None:
            return int(known)
        ids = self._continuing.encode(mark, add_special_tokens=False).ids
        if len(ids) != 1:
            own = self.tokenizer.eos_token
            raise ConfigError(
                f"the template's mark {mark!r} is {len(ids)} tokens of this tokenizer and must be one. "
                f"Choose a template (or its option) with a mark that exists; the tokenizer ends texts with "
                f"{own!r}."
            )
        return int(ids[0])

    def _opening_ids(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before a text (Llama's `<s>`): inference will do the same."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start])
        return ()


def _runs(segments: Sequence[Segment]) -> Iterator[tuple[int | None, bool, bool, str]]:
    """(image, train, mark, text): neighbouring text of equal `train` is joined, empty text is dropped."""
    filled = [(i, item) for i, item in enumerate(segments) if item.image is not None or item.text]

    def kind(entry: tuple[int, Segment]) -> tuple[int | None, bool, bool, int]:
        index, item = entry
        alone = item.mark or item.image is not None
        return item.image, item.train, item.mark, index if alone else -1

    for (image, train, mark, _), group in groupby(filled, key=kind):
        yield image, train, mark, "".join(item.text for _, item in group)


def _with_prefix_on(layout: dict[str, Any], kept: set[str], same: Tokenizer) -> Tokenizer:
    """The tokenizer without the space that it puts before a text, but for the schemes in `kept`.

    `first`: only before the very first text; `always`: before each text between special tokens.
    """
    changed = json.loads(json.dumps({key: layout[key] for key in ("normalizer", "pre_tokenizer")}))
    if "always" not in kept:
        changed["normalizer"] = _drop_prepend(changed["normalizer"])
    _drop_prefix_space(changed["pre_tokenizer"], kept)
    if all(changed[key] == layout[key] for key in changed):
        return same
    return Tokenizer.from_str(json.dumps({**layout, **changed}))


def _drop_prepend(normalizer: Any) -> Any:
    if not normalizer:
        return normalizer
    if normalizer["type"] == "Prepend":
        return None
    if normalizer["type"] == "Sequence":
        parts = (_drop_prepend(part) for part in normalizer["normalizers"])
        return {**normalizer, "normalizers": [part for part in parts if part is not None]}
    return normalizer


def _drop_prefix_space(pre_tokenizer: Any, kept: set[str]) -> None:
    if not pre_tokenizer:
        return
    for part in pre_tokenizer.get("pretokenizers", ()):
        _drop_prefix_space(part, kept)
    if pre_tokenizer["type"] == "Metaspace" and pre_tokenizer["prepend_scheme"] not in kept:
        pre_tokenizer["prepend_scheme"] = "never"
    elif pre_tokenizer["type"] == "ByteLevel" and "always" not in kept:
        pre_tokenizer["add_prefix_space"] = False
