"""What a reasoner is: a question and a description in, an answer out; it never sees the picture.

A module of this folder has `class Options(Section)` and `build(options, context) -> Reasoner`.
Building one is cheap: weights are loaded at the first request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.clients.answer import Answer


@dataclass(frozen=True)
class ReasonRequest:
    """A text LLM's whole prompt (one user turn). question and description are for reasoners that are rules;
    they are None where a reasoner is asked for something else (a query-specific instruction)."""

    prompt: str
    question: Question | None = None
    description: str | None = None


class Reasoner(Protocol):
    @property
    def identity(self) -> str:
        """Changes with everything but request and decoding that decides the text. Part of the cache's key."""

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        """As Perceiver.describe: every request once, in any order, each as soon as it is known."""


@dataclass(frozen=True)
class ReasonerContext:
    """What every reasoner is built with. device and batch_size: of local models."""

    name: str
    decoding: Decoding
    device: str
    batch_size: int
    seed: int
