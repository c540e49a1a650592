"""`<|im_start|>{role}\\n{text}<|im_end|>\\n` (SmolLM2, Qwen, InternLM2).

The loss falls on the answer and its `<|im_end|>`. The newline after it is context, not target:
generation stops at `<|im_end|>` and never has to produce it, and chat templates of Hugging Face
that mark what the assistant generates leave it out too.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismcap.configs.schema.base import Section
from prismcap.data.schema import Segment, TemplateSpec
from prismcap.data.templates._headed import HeadedTemplate

START = "<|im_start|>"
END = "<|im_end|>"
SPEC = TemplateSpec(name="chatml", stop=(END,))


class Options(Section):
    """system: opens every conversation that brings no system message of its own. bos: a token before
    everything, where the model wants one and its tokenizer does not add it (InternLM2: `<s>`)."""

    system: str | None = None
    bos: str | None = None


@dataclass(frozen=True)
class ChatmlTemplate(HeadedTemplate):
    spec: TemplateSpec = SPEC

    def header(self, role: str) -> list[Segment]:
        return [Segment(text=START, mark=True), Segment(text=f"{role}\n")]

    def end(self, train: bool) -> list[Segment]:
        return [Segment(text=END, train=train, mark=True), Segment(text="\n")]


def build(options: Options) -> ChatmlTemplate:
    return ChatmlTemplate(system=options.system, bos=options.bos)
