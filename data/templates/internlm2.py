"""chatml with one `<s>` before everything: InternLM2's chat models, and PrismCaptioner on them."""

from __future__ import annotations

from prismcap.configs.schema.base import Section
from prismcap.data.schema import TemplateSpec
from prismcap.data.templates.chatml import END, ChatmlTemplate

BOS = "<s>"
SPEC = TemplateSpec(name="internlm2", stop=(END,))


class Options(Section):
    """system: opens every conversation that brings no system message of its own."""

    system: str | None = None


def build(options: Options) -> ChatmlTemplate:
    return ChatmlTemplate(system=options.system, bos=BOS, spec=SPEC)
