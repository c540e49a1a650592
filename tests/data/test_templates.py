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


def test_golden_llama_2() -> None:
    template = build("llama_2", system="S")
    first = "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n<image0>\nq1 [/INST] a1 </s>"
    assert flat(template.render(TWO_TURNS)) == f"{first}<s>[INST] q2 [/INST] a2 </s>"
    assert flat(template.render(TWO_TURNS), only_train=True) == " a1 </s> a2 </s>"
    assert flat(template.render(TWO_TURNS[:1], generation=True)).endswith("q1 [/INST]")
    assert "helpful language and vision assistant" in flat(build("llama_2").render(TWO_TURNS))
    bare = build("llama_2", system=None, bos="<b>", end="<e>")
    assert flat(bare.render(TWO_TURNS[2:])) == "<b>[INST] q2 [/INST] a2 <e>"
    assert bare.spec.stop == ("<e>",)


def test_golden_minigpt4() -> None:
    template = build("minigpt4")
    first = "###Human: <Img><image0></Img> q1 ###Assistant: a1###"
    assert flat(template.render(TWO_TURNS)) == f"{first}Human: q2 ###Assistant: a2###"
    assert flat(template.render(TWO_TURNS), only_train=True) == " a1### a2###"
    assert flat(template.render(TWO_TURNS[:1], generation=True)).endswith("q1 ###Assistant:")
    several = [user("Is", 0, "like", 1, 2)]
    shown = "Is <Img><image0></Img> like <Img><image1></Img> <Img><image2></Img>"
    assert flat(template.render(several, generation=True)) == f"###Human: {shown} ###Assistant:"
    assert flat(build("minigpt4", system="S").render(TWO_TURNS)).startswith("S###Human: <Img>")


def test_golden_owl() -> None:
    template = build("owl")
    system = (
        "The following is a conversation between a curious human and AI assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions."
    )
    expected = f"{system}\nHuman: <image0>\nHuman: q1\nAI: a1</s>\nHuman: q2\nAI: a2</s>"
    assert flat(template.render(TWO_TURNS)) == expected
    assert flat(template.render(TWO_TURNS), only_train=True) == " a1</s> a2</s>"
    assert flat(template.render(TWO_TURNS[:1], generation=True)).endswith("q1\nAI:")
    bare = build("owl", system=None, end="<e>")
    assert flat(bare.render(TWO_TURNS)) == "Human: <image0>\nHuman: q1\nAI: a1<e>\nHuman: q2\nAI: a2<e>"


def test_golden_internlm2_and_qwen() -> None:
    assert flat(build("internlm2").render(TWO_TURNS)) == f"<s>{CHATML}"
    system = "<|im_start|>system\nS<|im_end|>\n"
    assert flat(build("internlm2", system="S").render(TWO_TURNS)) == f"<s>{system}{CHATML}"
    assert flat(build("qwen", system=None).render(TWO_TURNS)) == CHATML
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert flat(build("qwen").render(TWO_TURNS)) == f"{default}{CHATML}"
    for name in ("internlm2", "qwen"):
        assert flat(build(name).render(TWO_TURNS), only_train=True) == "a1<|im_end|>a2<|im_end|>"


def test_golden_llama_3() -> None:
    def turn(role: str, text: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"

    turns = [turn("user", "<image0>\nq1"), turn("assistant", "a1")]
    turns += [turn("user", "q2"), turn("assistant", "a2")]
    assert flat(build("llama_3").render(TWO_TURNS)) == "<|begin_of_text|>" + "".join(turns)
    with_system = flat(build("llama_3", system="S").render(TWO_TURNS))
    assert with_system == "<|begin_of_text|>" + turn("system", "S") + "".join(turns)
    assert flat(build("llama_3").render(TWO_TURNS), only_train=True) == "a1<|eot_id|>a2<|eot_id|>"
    prompt = flat(build("llama_3").render(TWO_TURNS[:1], generation=True))
    assert prompt.endswith("q1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")


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
    said = flat([item for item in whole if item.train])
    assert said.endswith(template.spec.stop), "the end of an answer is what generation stops at"
    assert said.removesuffix(template.spec.stop[0]).strip() == "a1"
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
