"""Every template as Jinja: equal to `render` on conversations that it was not read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import available, component_module
from prismcap.data.schema import ImagePart, Message, Segment, TemplateSpec, TextPart
from prismcap.data.templates._contract import Template, answer_text, user_segments
from prismcap.data.templates._jinja import IMAGE, chat_template, render_jinja

ODD_SYSTEM = 'It\'s \\n "odd"\n{{ not jinja }}'
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "chatml": [{}, {"system": ODD_SYSTEM, "bos": "<s>"}],
    "internlm2": [{}, {"system": ODD_SYSTEM}],
    "llama_2": [{}, {"system": None}],
    "llama_3": [{}, {"system": ODD_SYSTEM}],
    "minigpt4": [{}, {"system": ODD_SYSTEM}],
    "owl": [{}, {"system": None}],
    "qwen": [{}, {"system": None}],
    "vicuna_v1": [{}, {"system": None, "end": "<|im_end|>"}],
}
CASES = [(name, options) for name in available("template") for options in OPTIONS.get(name, [{}])]


def text_of(template: Template, messages: Sequence[Message], generation: bool) -> str:
    segments = template.render(messages, generation)
    return "".join(IMAGE if segment.image is not None else segment.text for segment in segments)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_equal_to_render(name: str, options: dict[str, Any]) -> None:
    module = component_module("template", name)
    template = module.build(module.Options(**options))
    source = chat_template(template)
    question = Message("user", (ImagePart(0), TextPart("How many {% raw %} 'apples'?"), ImagePart(1)))
    answer = Message("assistant", (TextPart("Three."),), train=True)
    system = Message("system", (TextPart("Count."),))
    conversations = [
        ([question], True),
        ([system, question], True),
        ([question, answer], False),
        ([system, question, answer], False),
    ]
    if name != "plain":  # which takes one turn
        later = Message("user", (TextPart("And"), ImagePart(2), ImagePart(3), TextPart("here?")))
        conversations += [
            ([question, answer, later], True),
            ([system, question, answer, later, answer], False),
        ]
    for messages, generation in conversations:
        assert render_jinja(source, messages, generation) == text_of(template, messages, generation)


def test_content_may_be_plain_text() -> None:
    module = component_module("template", "chatml")
    source = chat_template(module.build(module.Options()))
    from jinja2 import Environment

    rendered = Environment().from_string(source).render(messages=[{"role": "user", "content": "Hello"}])
    assert rendered == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Counting:
    """Numbers its turns: no fixed text says that."""

    @property
    def spec(self) -> TemplateSpec:
        return TemplateSpec(name="counting", stop=("\n",))

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:  # noqa: ARG002
        segments: list[Segment] = []
        for number, message in enumerate(messages):
            segments.append(Segment(text=f"{number}: "))
            if message.role == "assistant":
                segments.append(Segment(text=answer_text(message) + "\n"))
            else:
                segments += user_segments(message)
        return segments


def test_a_template_that_jinja_would_get_wrong_is_refused() -> None:
    with pytest.raises(ConfigError, match="'counting' cannot be exported"):
        chat_template(Counting())
