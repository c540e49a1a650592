"""Samples to token ids and labels: rendered and masked in one pass, segment by segment.

The labels come from the same pieces as the ids, never from a search in the finished text: a mask
that misses its text is the most reported silent failure of the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_options
from prismcap.configs.schema.base import Component
from prismcap.data.anyres import Tiling
from prismcap.data.image import picture_size
from prismcap.data.schema import (
    IGNORE_INDEX,
    Encoded,
    ImagePart,
    ImageRef,
    Message,
    Sample,
    SampleRejected,
    TextPart,
    TokenSpec,
)
from prismcap.data.templates._contract import Template
from prismcap.data.tokenize import SegmentTokenizer

Span = tuple[int, int, int]


@dataclass(frozen=True)
class Encoder:
    """Encodes samples of one stage. max_tokens bounds a sample, image tokens included; max_text_tokens its
    text from the first answer on: answers, their end marks, and what is asked between them. This is
    max_txt_len of MiniGPT-4 (minigpt4/models/minigpt_base.py, preparing_embedding), which does not count the
    prompt either.

    Both cut alike. An end mark is trained where an answer ends by itself: one that is cut has none, there as
    here, so no model learns to stop in the middle of a sentence.

    tokenizer: a fast tokenizer of transformers. Raises ConfigError when it cannot write the template.
    """

    template: Template
    tokenizer: Any
    token_spec: TokenSpec
    max_tokens: int
    max_text_tokens: int | None = None
    _segments: SegmentTokenizer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        marks = _marks(self.template)
        object.__setattr__(self, "_segments", SegmentTokenizer(self.tokenizer, marks))

    @property
    def pad_id(self) -> int:
        """What stands at padding and at the places of image tokens; no model ever reads its meaning."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def encode(self, sample: Sample) -> Encoded:
        """input_ids and labels of a training sample.

        A sample over max_tokens loses whole turns from its end; when not even the first answer is whole,
        the end of that answer. Raises SampleRejected: bad_turns, mark_in_text, too_long (pictures alone
        take too much), no_supervised_tokens; with anyres also image_*, as the size is read from the file.
        """
        try:
            tilings = self._tilings(sample.images)
            counts = self._token_counts(sample.images, tilings)
            ids, labels, spans = self._assemble(sample.messages, counts, generation=False)
            keep = self._keep(labels, spans)
            spans = [span for span in spans if span[1] + span[2] <= keep]
            encoded = _encoded(
                *(sample.id, ids[:keep], labels[:keep], sample.images, spans, len(ids) - keep, tilings)
            )
            if encoded.num_target_tokens == 0:
                raise SampleRejected("no_supervised_tokens", self._nothing_left(len(ids), keep))
        except SampleRejected as error:
            raise _located(sample, error) from error
        return encoded

    def encode_prompt(self, messages: Sequence[Message], images: Sequence[ImageRef], id: str = "") -> Encoded:
        """A prompt for generation: ends with what opens the assistant's turn, no labels.

        Raises SampleRejected: bad_turns, mark_in_text, too_long.
        """
        tilings = self._tilings(images)
        counts = self._token_counts(images, tilings)
        ids, labels, spans = self._assemble(messages, counts, generation=True)
        if len(ids) > self.max_tokens:
            raise SampleRejected(
                "too_long", f"the prompt is {len(ids)} tokens, max_tokens is {self.max_tokens}"
            )
        return _encoded(id, ids, [IGNORE_INDEX] * len(labels), tuple(images), spans, 0, tilings)

    def text_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a whole conversation without pictures, however long. Raises SampleRejected."""
        return self._assemble(messages, (), generation=False)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens included."""
        return self._segments.decode(ids)

    def _tilings(self, images: Sequence[ImageRef]) -> tuple[Tiling, ...]:
        """How each picture is cut, by the size in its header; empty, and files stay closed, where the size
        decides nothing."""
        if not self.token_spec.depends_on_size:
            return ()
        found = (self.token_spec.tiling(*picture_size(image)) for image in images)
        return tuple(tiling for tiling in found if tiling is not None)

    def _token_counts(self, images: Sequence[ImageRef], tilings: Sequence[Tiling]) -> list[int]:
        """Positions of each picture."""
        if not tilings:
            return [self.token_spec.tokens_per_tile] * len(images)
        return [self.token_spec.tokens_of(tiling) for tiling in tilings]

    def _assemble(
        self, messages: Sequence[Message], image_tokens: Sequence[int], generation: bool
    ) -> tuple[list[int], list[int], list[Span]]:
        """ids, labels, spans of the whole conversation, before any cut. image_tokens: of each picture."""
        ids: list[int] = []
        labels: list[int] = []
        spans: list[Span] = []
        pieces = list(self._segments.pieces(self.template.render(messages, generation)))
        opening = self._segments.bos_ids
        if pieces and opening and pieces[0].ids[: len(opening)] != opening:
            ids += opening
            labels += [IGNORE_INDEX] * len(opening)
        for piece in pieces:
            new = piece.ids
            if piece.image is not None:
                if piece.image >= len(image_tokens):
                    message = f"a message shows picture {piece.image}, but there are {len(image_tokens)}"
                    raise SampleRejected("image_marks", message)
                new = (self.pad_id,) * image_tokens[piece.image]
                spans.append((piece.image, len(ids), len(new)))
            ids += new
            labels += new if piece.train else (IGNORE_INDEX,) * len(new)
        return ids, labels, spans

    def _keep(self, labels: list[int], spans: list[Span]) -> int:
        """How many tokens stay: all, or up to the end of an answer, or what fits of the first answer."""
        size = len(labels)
        first = next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), size)
        room = self._room(first, spans)
        if size <= room:
            return size
        pictures = sum(length for _, start, length in spans if start < first)
        if pictures > self.max_tokens:
            message = f"its pictures take {pictures} tokens, max_tokens is {self.max_tokens}"
            raise SampleRejected("too_long", message)
        ends = [i for i in range(1, room + 1) if labels[i - 1] != IGNORE_INDEX and labels[i] == IGNORE_INDEX]
        if ends:
            return ends[-1]
        if first >= room:
            message = f"its prompt takes {first} tokens, max_tokens is {self.max_tokens}"
            raise SampleRejected("no_supervised_tokens", message)
        return room

    def _room(self, first: int, spans: list[Span]) -> int:
        """How many tokens may stay of a sample whose answers begin at `first`: max_tokens, or as far as
        max_text_tokens of text reach; a picture in their way costs none."""
        if self.max_text_tokens is None:
            return self.max_tokens
        end = first + self.max_text_tokens
        for _, start, length in spans:
            if first <= start < end:
                end += length
        return min(end, self.max_tokens)

    def _nothing_left(self, size: int, keep: int) -> str:
        return f"no supervised token among the {keep} of {size} tokens kept: does an assistant turn train?"


def _encoded(
    id: str,
    ids: list[int],
    labels: list[int],
    images: Sequence[ImageRef],
    spans: list[Span],
    cut: int,
    tilings: Sequence[Tiling],
) -> Encoded:
    used = sorted({image for image, _, _ in spans})  # a turn that was cut off takes its pictures along
    return Encoded(
        id=id,
        input_ids=torch.tensor(ids, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        images=tuple(images[image] for image in used),
        spans=tuple((used.index(image), start, length) for image, start, length in spans),
        cut_tokens=cut,
        tilings=tuple(tilings[image] for image in used) if tilings else (),
    )


def _located(sample: Sample, error: SampleRejected) -> SampleRejected:
    return SampleRejected(error.reason, f"{sample.source}, sample {sample.id!r}: {error}")


def _marks(template: Template) -> frozenset[str]:
    """Every mark of the template, from a conversation that uses them all."""
    user = Message("user", (ImagePart(0), TextPart("a")))
    answer = Message("assistant", (TextPart("b"),), train=True)
    segments = template.render([user, answer])
    return frozenset(item.text for item in segments if item.mark)


def build_encoder(
    template: Component,
    tokenizer: Any,
    token_spec: TokenSpec,
    max_tokens: int,
    where: str = "",
    max_text_tokens: int | None = None,
    encoder_type: type[Encoder] = Encoder,
) -> Encoder:
    """The encoder of a template. `where` (file and key path) goes into errors."""
    module, options = component_options("template", template, where)
    try:
        return encoder_type(module.build(options), tokenizer, token_spec, max_tokens, max_text_tokens)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error
