"""Answers with one letter, whatever it is asked, and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prism_fakes.behaviour import Behaviour
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.reasoners._contract import ReasonerContext, ReasonRequest


class Options(Behaviour):
    says: str = "A"


class Judging:
    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def identity(self) -> str:
        return f"judging {self.options.says}"

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        yield from self.options.answers((request.prompt, self.options.says) for request in requests)


class Mumbling(Judging):
    """Its replies choose nothing that a rule could read, and each is another."""

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        yield from self.options.answers((one.prompt, f"Hm: {one.prompt[-9:]!r}") for one in requests)


def build(options: Options, context: ReasonerContext) -> Judging:
    return Mumbling(options) if context.name == "mumbling" else Judging(options)
