"""Answers with the option whose word the description holds; writes instructions when it is asked to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import prism_fakes
from prism_fakes.behaviour import Behaviour
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.reasoners._contract import ReasonerContext, ReasonRequest


class Options(Behaviour):
    part: str = "the colour of all the parts"
    empty: bool = False


class Reading:
    def __init__(self, options: Options, context: ReasonerContext) -> None:
        self.options = options
        self.context = context
        prism_fakes.built(self)

    @property
    def identity(self) -> str:
        return f"reading {self.options.weights} {self.options.part} {self.options.empty}"

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        prism_fakes.loaded(self)
        yield from self.options.answers((request.prompt, self._text(request)) for request in requests)

    def _text(self, request: ReasonRequest) -> str:
        if self.options.empty:
            return " "
        if request.question is None:
            return self.options.part
        words = (request.description or "").lower().rstrip(".").split()
        found = [
            f"{letter}. {option}"
            for letter, option in zip("ABCD", request.question.options, strict=True)
            if option in words
        ]
        return f"The answer is {found[0]}" if len(found) == 1 else "I cannot tell from the description."


def build(options: Options, context: ReasonerContext) -> Reading:
    return Reading(options, context)
