"""A blind guess: one option, or yes or no, drawn from the seed and the question's id."""

from __future__ import annotations

import hashlib

from prismcap.configs.schema.base import Section
from prismcap.evaluate.benchmarks._contract import LETTERS, Question
from prismcap.evaluate.reasoners._contract import ReasonerContext
from prismcap.evaluate.reasoners._rules import CANNOT_TELL, RuleReasoner


class Options(Section):
    """None: the seed is the Prism config's."""


def build(options: Options, context: ReasonerContext) -> RuleReasoner:  # noqa: ARG001
    def rule(question: Question, description: str | None) -> str:  # noqa: ARG001
        return guess(question, context.seed)

    return RuleReasoner(identity=f"random, seed {context.seed}", rule=rule)


def guess(question: Question, seed: int) -> str:
    """The same in every run of the seed, each of k options with a chance of 1/k; free answers are refused."""
    choices = ("Yes.", "No.") if question.kind == "yes_no" else LETTERS[: len(question.options)]
    if not choices:
        return CANNOT_TELL
    digest = hashlib.sha256(f"{seed}\0{question.id}".encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]
