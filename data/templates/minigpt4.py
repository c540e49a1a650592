"""`###Human: <Img><ImageHere></Img> {q1} ###Assistant: {a1}###Human: {q2} ###Assistant: {a2}###` (MiniGPT-4).

`###` ends an answer and opens the next question. It is ordinary text and no token of its own: LLaMA's
tokenizer writes it as one token or two, by what stands before it, so it is tokenised with its answer, as in
the released code. Generation looks for it in the text. The space before an answer belongs to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Segment, TemplateSpec
from prismcap.data.templates._contract import answer_text, split_system, user_segments

END = "###"
AROUND_IMAGE = ("<Img>", "</Img>")
SPEC = TemplateSpec(name="minigpt4", stop=(END,))


class Options(Section):
    """system: opens every conversation that brings no system message of its own. The released model was
    trained without."""

    system: str | None = None


@dataclass(frozen=True)
class MiniGPT4Template:
    system: str | None = None
    spec: TemplateSpec = SPEC

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """See Template.render."""
        own_system, turns = split_system(messages, generation)
        system = self.system if own_system is None else own_system
        segments = [Segment(text=f"{system or ''}{END}")]
        for turn in turns:
            if turn.role == "user":
                content = user_segments(turn, beside_image=" ", around_image=AROUND_IMAGE)
                segments += [Segment(text="Human: "), *content, Segment(text=f" {END}Assistant:")]
            else:
                segments.append(Segment(text=f" {answer_text(turn)}{END}", train=turn.train))
        return segments


def build(options: Options) -> MiniGPT4Template:
    return MiniGPT4Template(system=options.system)
