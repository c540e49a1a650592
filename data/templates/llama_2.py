"""`<s>[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{q1} [/INST] {a1} </s><s>[INST] {q2} [/INST] {a2} </s>`.

Llama-2. The system text stands inside the first turn; every later turn opens with `<s>` again. The space
before an answer belongs to the answer, as in vicuna_v1, and so does the one after it: it leads to `</s>`,
and what is not trained is not generated. With system: null the first turn is like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Segment, TemplateSpec
from prismcap.data.templates._contract import answer_text, split_system, user_segments

# LLaVA's system text for Llama-2 chat models
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)


class Options(Section):
    """system: opens every conversation that brings no system message of its own; null for none.
    bos, end: the tokens before each question and after each answer."""

    system: str | None = SYSTEM
    bos: str = Field(default="<s>", min_length=1)
    end: str = Field(default="</s>", min_length=1)


@dataclass(frozen=True)
class Llama2Template:
    system: str | None = SYSTEM
    bos: str = "<s>"
    end: str = "</s>"
    spec: TemplateSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", TemplateSpec(name="llama_2", stop=(self.end,)))

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """See Template.render."""
        own_system, turns = split_system(messages, generation)
        system = self.system if own_system is None else own_system
        inside = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
        segments: list[Segment] = []
        for turn in turns:
            if turn.role == "user":
                segments += [Segment(text=self.bos, mark=True), Segment(text=f"[INST] {inside}")]
                segments += [*user_segments(turn), Segment(text=" [/INST]")]
                inside = ""
            else:
                segments.append(Segment(text=f" {answer_text(turn)} ", train=turn.train))
                segments.append(Segment(text=self.end, train=turn.train, mark=True))
        return segments


def build(options: Options) -> Llama2Template:
    return Llama2Template(system=options.system, bos=options.bos, end=options.end)
