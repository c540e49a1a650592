"""`{system} USER: {q1} ASSISTANT: {a1}</s>USER: {q2} ASSISTANT: {a2}</s>` (Vicuna v1.1, LLaVA-1.5).

There is no space after `</s>`. The space before an answer belongs to the answer, so that its first
word is the token it would be in running text (`▁answer`); the prompt ends at `ASSISTANT:`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Segment, TemplateSpec
from prismcap.data.templates._contract import answer_text, split_system, user_segments

# FastChat's vicuna_v1.1, as LLaVA-1.5 uses it
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Options(Section):
    """system: opens every conversation that brings no system message of its own; null for none.
    end: the token that ends an answer."""

    system: str | None = SYSTEM
    end: str = Field(default="</s>", min_length=1)


@dataclass(frozen=True)
class VicunaTemplate:
    system: str | None = SYSTEM
    end: str = "</s>"
    spec: TemplateSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", TemplateSpec(name="vicuna_v1", stop=(self.end,)))

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """See Template.render."""
        own_system, turns = split_system(messages, generation)
        system = self.system if own_system is None else own_system
        segments = [Segment(text=f"{system} ")] if system else []
        for turn in turns:
            if turn.role == "user":
                segments += [Segment(text="USER: "), *user_segments(turn), Segment(text=" ASSISTANT:")]
            else:
                segments.append(Segment(text=f" {answer_text(turn)}", train=turn.train))
                segments.append(Segment(text=self.end, train=turn.train, mark=True))
        return segments


def build(options: Options) -> VicunaTemplate:
    return VicunaTemplate(system=options.system, end=options.end)
