"""How much of what is true of a picture its description says: statements entailed, of all there are.

By graph: the facts of a composed scene, looked up in what the text is read as. By judge: an LLM is asked of
each statement by itself whether the text says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, Metric, MetricContext, Need
from prismcap.evaluate.metrics._scene_text import READER_VERSION, read_of, scene_statements
from prismcap.evaluate.metrics._shares import summed, table, that_apply
from prismcap.evaluate.metrics._vocabulary import scene_vocabulary
from prismcap.evaluate.reasoners._contract import Reasoner, ReasonRequest
from prismcap.evaluate.scoring.yes_no import extract_yes_no

VERSION = 1  # raise it whenever a figure changes
PROMPT_VERSION = 1  # raise it whenever the prompt or the reading of the reply changes
PROMPT = (
    "Below are a description of a picture, and a statement about the picture. Decide whether the description "
    "says so: it may use other words, or say something from which the statement surely follows. What is only "
    "likely, or true in general, is not said. Do not judge whether the description is right.\n\n"
    "Description:\n<description>\n{text}\n</description>\n\n"
    "Statement: {statement}\n\n"
    "Does the description say that the statement is true? Answer with yes or no and nothing else."
)
_NOTE = "share of the true statements that the text entails"


class Options(Section):
    """Who decides."""

    by: Literal["graph", "judge"] = Field(
        default="graph", description="graph: of composed scenes; judge: an LLM, for items with statements"
    )


def build(options: Options, context: MetricContext) -> Metric:
    """Raises ConfigError where a judge is asked for and there is none."""
    if options.by == "graph":
        return GraphCoverage()
    if context.judge is None:
        raise ConfigError(
            f"{context.where}: coverage.by: judge needs a judge, and none is given: name a reasoner as the "
            "judge, or set by to graph for composed scenes"
        )
    return JudgedCoverage(context.judge)


class GraphCoverage:
    """Statements: every object, the place of each, their number, and the background."""

    needs: frozenset[Need] = frozenset({"graph"})

    @property
    def identity(self) -> str:
        return f"coverage {VERSION} graph reader {READER_VERSION} words {scene_vocabulary().digest}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        return that_apply([summed("coverage", table(map(_entailed, items)), _NOTE)])


def _entailed(item: CaptionItem) -> tuple[float, float]:
    """(statements that the text entails, statements)."""
    assert item.graph is not None, "the caller checks `needs`"
    said = read_of(item.text, item.graph)
    statements = scene_statements(item.graph)
    return float(sum(statement.said_in(said) for statement in statements)), float(len(statements))


class JudgedCoverage:
    """One question per statement. A reply that is neither yes nor no, or none at all, is no; `unread` tells
    how many there were."""

    needs: frozenset[Need] = frozenset({"statements"})

    def __init__(self, judge: Reasoner) -> None:
        self._judge = judge

    @property
    def identity(self) -> str:
        return f"coverage {VERSION} prompt {PROMPT_VERSION} judge {self._judge.identity}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        """Raises as the judge does, for what concerns all requests."""
        prompts = [[coverage_prompt(item.text, one) for one in item.statements] for item in items]
        verdicts = self._verdicts([prompt for asked in prompts for prompt in asked])
        found = [[verdicts[prompt] for prompt in asked] for asked in prompts]
        entailed = table((float(row.count("yes")), float(len(row))) for row in found)
        unread = table((float(row.count(None)), float(len(row))) for row in found)
        note = "share of the statements for which the judge said neither yes nor no"
        return that_apply(
            [
                summed("coverage", entailed, _NOTE),
                summed("unread", unread, note, higher_is_better=False),
            ]
        )

    def _verdicts(self, prompts: Sequence[str]) -> dict[str, str | None]:
        """yes, no or None of each prompt; equal ones are asked once."""
        asked = list(dict.fromkeys(prompts))
        verdicts: dict[str, str | None] = dict.fromkeys(asked)
        for position, answer in self._judge.answer([ReasonRequest(prompt) for prompt in asked]):
            if answer.status == "ok":
                verdicts[asked[position]] = extract_yes_no(answer.text).value
        return verdicts


def coverage_prompt(text: str, statement: str) -> str:
    """The whole prompt for one statement."""
    return PROMPT.format(text=text.strip(), statement=statement.strip())
