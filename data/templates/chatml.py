"""`<|im_start|>{role}\\n{text}<|im_end|>\\n` (SmolLM2, Qwen, InternLM2).

The loss falls on the answer and its `<|im_end|>`. The newline after it is context, not target:
generation stops at `<|im_end|>` and never has to produce it, and chat templates of Hugging Face
that mark what the assistant generates leave it out too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Segment, TemplateSpec
from prismcap.data.templates._contract import answer_text, split_system, user_segments

START = "<|im_start|>"
END = "<|im_end|>"
SPEC = TemplateSpec(name="chatml", stop=(END,))


class Options(Section):
    """system: opens every conversation that brings no system message of its own. bos: a token before
    everything, where the model wants one and its tokenizer does not add it (InternLM2: `<s>`)."""

    system: str | None = None
    bos: str | None = None


@dataclass(frozen=True)
class ChatmlTemplate:
    system: str | None = None
    bos: str | None = None
    spec: TemplateSpec = SPEC

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """See Template.render."""
        own_system, turns = split_system(messages, generation)
        system = self.system if own_system is None else own_system
        segments = [Segment(text=self.bos, mark=True)] if self.bos else []
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
    return [Segment(text=START, mark=True), Segment(text=f"{role}\n")]


def _turn(role: str, content: list[Segment], train: bool = False) -> list[Segment]:
    return [*_opening(role), *content, Segment(text=END, train=train, mark=True), Segment(text="\n")]


def build(options: Options) -> ChatmlTemplate:
    return ChatmlTemplate(system=options.system, bos=options.bos)
