"""`<|begin_of_text|>`, then every turn as `<|start_header_id|>{role}<|end_header_id|>\\n\\n{text}<|eot_id|>`.

Llama 3 and later. The loss falls on the answer and its `<|eot_id|>`. Nothing stands between turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismcap.configs.schema.base import Section
from prismcap.data.schema import Segment, TemplateSpec
from prismcap.data.templates._headed import HeadedTemplate

BOS = "<|begin_of_text|>"
HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
END = "<|eot_id|>"
SPEC = TemplateSpec(name="llama_3", stop=(END,))


class Options(Section):
    """system: opens every conversation that brings no system message of its own."""

    system: str | None = None


@dataclass(frozen=True)
class Llama3Template(HeadedTemplate):
    spec: TemplateSpec = SPEC
    bos: str | None = BOS

    def header(self, role: str) -> list[Segment]:
        marks = Segment(text=HEADER, mark=True), Segment(text=END_HEADER, mark=True)
        return [marks[0], Segment(text=role), marks[1], Segment(text="\n\n")]

    def end(self, train: bool) -> list[Segment]:
        return [Segment(text=END, train=train, mark=True)]


def build(options: Options) -> Llama3Template:
    return Llama3Template(system=options.system)
