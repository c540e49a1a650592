"""Reasoners that are a rule over question and description: controls that need no LLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.reasoners._contract import ReasonRequest

CANNOT_TELL = "I cannot tell."
Rule = Callable[[Question, str | None], str]


@dataclass(frozen=True)
class RuleReasoner:
    """rule: the reply to a question with a description, or without one (blind)."""

    identity: str
    rule: Rule

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        """A prompt that asks no question of a benchmark (to write an instruction, say) is a failure."""
        for position, request in enumerate(requests):
            if request.question is None:
                yield (
                    position,
                    failed("a rule answers questions of a benchmark, and this is none: take an LLM"),
                )
            else:
                text = self.rule(request.question, request.description)
                yield position, Answer(text=text, finish_reason="stop", tokens_in=0, tokens_out=0)
