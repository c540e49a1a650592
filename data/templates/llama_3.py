"""`<|begin_of_text|>`, then every turn as `<|start_header_id|>{role}<|end_header_id|>\\n\\n{text}<|eot_id|>`.

Llama 3 and later. The loss falls on the answer and its `<|eot_id|>`. Nothing stands between turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Segment, TemplateSpec
from prismcap.data.templates._contract import answer_text, split_system, user_segments

BOS = "<|begin_of_text|>"
HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
END = "<|eot_id|>"
SPEC = TemplateSpec(name="llama_3", stop=(END,))


class Options(Section):
    """system: opens every conversation that brings no system message of its own."""

    system: str | None = None


@dataclass(frozen=True)
class Llama3Template:
    system: str | None = None
    spec: TemplateSpec = SPEC

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """See Template.render."""
        own_system, turns = split_system(messages, generation)
        system = self.system if own_system is None else own_system
        segments = [Segment(text=BOS, mark=True)]
        if system is not None:
            segments += _turn("system", [Segment(text=system)])
        for turn in turns:
            if turn.role == "user":
                segments += _turn("user", user_segments(turn))
            else:
                answer = Segment(text=answer_text(turn), train=turn.train)
                segments += _turn("assistant", [answer], train=turn.train)
        if generation:
            segments += _opening("assistant")
        return segments


def _opening(role: str) -> list[Segment]:
    marks = Segment(text=HEADER, mark=True), Segment(text=END_HEADER, mark=True)
    return [marks[0], Segment(text=role), marks[1], Segment(text="\n\n")]


def _turn(role: str, content: list[Segment], train: bool = False) -> list[Segment]:
    return [*_opening(role), *content, Segment(text=END, train=train, mark=True)]


def build(options: Options) -> Llama3Template:
    return Llama3Template(system=options.system)
