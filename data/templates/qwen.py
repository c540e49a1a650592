"""chatml as Qwen's chat models open it: Qwen2 with a system text of its own, Qwen3 without (system: null)."""

from __future__ import annotations

from prismcap.configs.schema.base import Section
from prismcap.data.schema import TemplateSpec
from prismcap.data.templates.chatml import END, ChatmlTemplate

# what Qwen2's chat template says where a conversation brings no system message
SYSTEM = "You are a helpful assistant."
SPEC = TemplateSpec(name="qwen", stop=(END,))


class Options(Section):
    """system: opens every conversation that brings no system message of its own; null for none."""

    system: str | None = SYSTEM


def build(options: Options) -> ChatmlTemplate:
    return ChatmlTemplate(system=options.system, spec=SPEC)
