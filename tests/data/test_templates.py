"""Golden strings of two turns, and the two rules of templates/_contract.py for every file there."""

from __future__ import annotations

import pytest

from prismcap.configs.registry import available, component_options
from prismcap.configs.schema.base import Component
from prismcap.data.schema import ImagePart, Message, SampleRejected, Segment, TextPart
from prismcap.data.templates._contract import Template
from prismcap.data.templates.vicuna_v1 import SYSTEM


def build(name: str, **options: object) -> Template:
    module, parsed = component_options("template", Component(name=name, **options))
    template: Template = module.build(parsed)
    return template


def user(*parts: str | int) -> Message:
    return Message("user", tuple(ImagePart(p) if isinstance(p, int) else TextPart(p) for p in parts))


def answer(text: str) -> Message:
    return Message("assistant", (TextPart(text),), train=True)


def flat(segments: list[Segment], only_train: bool = False) -> str:
    kept = [item for item in segments if item.train or not only_train]
    return "".join(item.text if item.image is None else f"<image{item.image}>" for item in kept)


TWO_TURNS = [user(0, "q1"), answer("a1"), user("q2"), answer("a2")]
CHATML = (
    "<|im_start|>user\n<image0>\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
    "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n"
)


def test_golden_chatml() -> None:
    assert flat(build("chatml").render(TWO_TURNS)) == CHATML
    internlm = build("chatml", system="S", bos="<s>")
    assert flat(internlm.render(TWO_TURNS)) == f"<s><|im_start|>system\nS<|im_end|>\n{CHATML}"
    assert flat(internlm.render(TWO_TURNS), only_train=True) == "a1<|im_end|>a2<|im_end|>"


def test_golden_vicuna() -> None:
    template = build("vicuna_v1")
    expected = f"{SYSTEM} USER: <image0>\nq1 ASSISTANT: a1</s>USER: q2 ASSISTANT: a2</s>"
    assert flat(template.render(TWO_TURNS)) == expected
    assert flat(template.render(TWO_TURNS), only_train=True) == " a1</s> a2</s>"
    assert flat(template.render(TWO_TURNS[:1], generation=True)).endswith("q1 ASSISTANT:")
    bare = build("vicuna_v1", system=None, end="<|end|>")
    assert flat(bare.render(TWO_TURNS[2:])) == "USER: q2 ASSISTANT: a2<|end|>"
    assert bare.spec.stop == ("<|end|>",)


def test_golden_plain() -> None:
    template = build("plain")
    pair = [user("Give a brief description.", 0), answer(" a cat\n")]
    assert flat(template.render(pair)) == "<image0>a cat\n"
    assert flat(template.render(pair), only_train=True) == "a cat\n"
    assert flat(template.render(pair[:1], generation=True)) == "<image0>"
    with pytest.raises(SampleRejected, match="4 messages"):
        template.render(TWO_TURNS)


def test_pictures_stand_on_lines_of_their_own_where_they_are() -> None:
    template = build("vicuna_v1", system=None)

    def shown(*parts: str | int) -> str:
        return flat(template.render([user(*parts)], generation=True))

    assert shown("q", 0) == "USER: q\n<image0> ASSISTANT:"
    assert shown("a", 0, "b", 1) == "USER: a\n<image0>\nb\n<image1> ASSISTANT:"
    assert shown(0, 1, "q") == "USER: <image0>\n<image1>\nq ASSISTANT:"
    assert shown(0) == "USER: <image0> ASSISTANT:"
    assert shown("one ", "text") == "USER: one text ASSISTANT:"


def test_a_system_message_replaces_the_default() -> None:
    own = [Message("system", (TextPart("own"),)), *TWO_TURNS[2:]]
    assert flat(build("vicuna_v1").render(own)).startswith("own USER:")
    assert flat(build("chatml", system="S").render(own)).startswith("<|im_start|>system\nown<|im_end|>")


@pytest.mark.parametrize("name", available("template"))
def test_every_template_keeps_the_contract(name: str) -> None:
    template = build(name)
    pair = [user(0, "q1"), answer("a1")]
    prompt = template.render(pair[:1], generation=True)
    whole = template.render(pair)
    assert whole[: len(prompt)] == prompt, "the prompt is not what was trained on"
    assert not any(item.train for item in prompt)
    trained = [item for item in whole if item.train]
    assert "a1" in flat(trained) and trained[-1].mark
    assert trained[-1].text in template.spec.stop
    assert template.spec.name == name

    untrained = template.render([pair[0], Message("assistant", (TextPart("a1"),), train=False)])
    assert not any(item.train for item in untrained)

    wrong = {
        "no turn": ([], False),
        "answer first": ([pair[1], pair[0]], False),
        "no answer": ([pair[0]], False),
        "answer at the end of a prompt": (pair, True),
        "two questions": ([pair[0], pair[0], pair[1]], False),
        "late system": ([*pair, Message("system", (TextPart("s"),)), pair[1]], False),
    }
    for what, (messages, generation) in wrong.items():
        with pytest.raises(SampleRejected) as caught:
            template.render(messages, generation)
        assert caught.value.reason == "bad_turns", what
    with pytest.raises(SampleRejected) as caught:
        template.render([pair[0], Message("assistant", (ImagePart(0),), train=True)])
    assert caught.value.reason == "bad_turns"
