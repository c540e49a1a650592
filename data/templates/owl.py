"""`{system}\\nHuman: <image>\\nHuman: {q1}\\nAI: {a1}</s>\\nHuman: {q2}\\nAI: {a2}</s>` (mPLUG-Owl v1).

A picture is a line of the human's own. The end-of-text token after each answer is the released data code's.
The space before an answer belongs to the answer, so that its first word is the token it would be in running
text; the prompt ends at `AI:`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Segment, TemplateSpec
from prismcap.data.templates._contract import answer_text, split_system, user_segments

SYSTEM = (
    "The following is a conversation between a curious human and AI assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HUMAN = "\nHuman: "


class Options(Section):
    """system: opens every conversation that brings no system message of its own; null for none.
    end: the token that ends an answer."""

    system: str | None = SYSTEM
    end: str = Field(default="</s>", min_length=1)


@dataclass(frozen=True)
class OwlTemplate:
    system: str | None = SYSTEM
    end: str = "</s>"
    spec: TemplateSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", TemplateSpec(name="owl", stop=(self.end,)))

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """See Template.render."""
        own_system, turns = split_system(messages, generation)
        system = self.system if own_system is None else own_system
        segments = [Segment(text=system)] if system else []
        for turn in turns:
            if turn.role == "user":
                content = user_segments(turn, beside_image=HUMAN)
                opening = HUMAN if segments else HUMAN.lstrip("\n")
                segments += [Segment(text=opening), *content, Segment(text="\nAI:")]
            else:
                segments.append(Segment(text=f" {answer_text(turn)}", train=turn.train))
                segments.append(Segment(text=self.end, train=turn.train, mark=True))
        return segments


def build(options: Options) -> OwlTemplate:
    return OwlTemplate(system=options.system, end=options.end)
