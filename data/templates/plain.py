"""`<image>{caption}\\n`: alignment on caption pairs (LLaVA's stage 1, facts of its released code).

The user's words are dropped, the loss falls on the caption and the newline, which is also where
generation stops. No end-of-text token is trained here, as in the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.configs.schema.base import Section
from prismcap.data.schema import ImagePart, Message, SampleRejected, Segment, TemplateSpec
from prismcap.data.templates._contract import answer_text, split_system

END = "\n"
SPEC = TemplateSpec(name="plain", stop=(END,))


class Options(Section):
    """bos: a token before everything, where the tokenizer adds none. Without it a picture stands first,
    where an LLM expects its attention sink: its gradients are then large, and in bf16 mostly noise."""

    bos: str | None = None


@dataclass(frozen=True)
class PlainTemplate:
    """Pictures of the user's turn, then the caption. System and user text are not used."""

    bos: str | None = None
    spec: TemplateSpec = SPEC

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """See Template.render. One user turn only; the caption is stripped of outer white space."""
        _, turns = split_system(messages, generation)
        if len(turns) > 2:
            message = f"plain takes one user and one assistant message, got {len(turns)} messages"
            raise SampleRejected("bad_turns", message)
        images = (part for part in turns[0].parts if isinstance(part, ImagePart))
        segments = [Segment(text=self.bos, mark=True)] if self.bos else []
        segments += [Segment(image=part.index) for part in images]
        if not generation:
            train = turns[1].train
            segments.append(Segment(text=answer_text(turns[1]).strip(), train=train))
            segments.append(Segment(text=END, train=train, mark=True))
        return segments


def build(options: Options) -> PlainTemplate:
    return PlainTemplate(bos=options.bos)
