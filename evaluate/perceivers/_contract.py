"""What a perceiver is: pictures in, a description out.

A module of this folder has `class Options(Section)` and `build(options, context) -> Perceiver`.
Building one is cheap: weights are loaded at the first request, so that a run whose answers are all known
loads none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.clients.answer import Answer

if TYPE_CHECKING:
    from prismcap.data.schema import ImageRef  # with torch, which a run whose answers are known does not need


@dataclass(frozen=True)
class PerceiveRequest:
    """One description to be written. `images`: usually one; several are labelled in the answer.

    question_id and benchmark: for perceivers that look descriptions up. reference: the benchmark's own.
    """

    benchmark: str
    question_id: str
    images: tuple[ImageRef, ...]
    instruction: str
    reference: str | None = None


class Perceiver(Protocol):
    @property
    def identity(self) -> str:
        """Changes with everything but request and decoding that decides the text: weights, prompt, software
        switches. Part of the cache's key; cheap, and without secrets."""

    @property
    def needs_pictures(self) -> bool:
        """Whether the answer depends on the pixels (not so for `file` and `reference`)."""

    def describe(self, requests: Sequence[PerceiveRequest]) -> Iterator[tuple[int, Answer]]:
        """(position in requests, answer) of every request once, in any order, each as soon as it is known.
        A request that fails is an Answer with status `failed`; what concerns all requests (no such model,
        a wrong key) raises ConfigError or DataError."""


@dataclass(frozen=True)
class PerceiverContext:
    """What every perceiver is built with. device: cpu, cuda, …; batch_size: of local models."""

    name: str
    decoding: Decoding
    device: str
    batch_size: int
