"""The stage's template against the tokenizer's own: equal forms pass, and a difference is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.schema.base import Component
from prismcap.configs.schema.run import RunConfig
from prismcap.data.encode import Encoder, build_encoder
from prismcap.data.schema import TokenSpec
from prismcap.model.build import build_captioner
from prismcap.model.trainable import prepare_stage
from prismcap.train.distributed import Ranks
from prismcap.train.doctor.chat_template import check_template
from prismcap.train.doctor.checkup import Checkup
from prismcap.train.run import stage_data

# in the documented form of the published models
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
)
INTERNLM2 = "{{ bos_token }}" + CHATML
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}" + CHATML
)
LLAMA_3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "{{ '\n\n' + message['content'] }}<|eot_id|>{% endfor %}"
)
LLAMA_2 = (
    "{% set inside = '' %}{% set turns = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set inside = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
    "{% endif %}{% for turn in turns %}{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (inside if loop.first else '') + turn['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
)
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def bytes_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """Bytes, and the marks of all templates."""
    marks = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", *HEADERS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*marks, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )


def coder(name: str, chat_template: str | None, max_tokens: int = 512, **options: Any) -> Encoder:
    component = Component(name=name, **options)
    return build_encoder(component, bytes_tokenizer(chat_template), TokenSpec(4), max_tokens)


@pytest.mark.parametrize(
    ("name", "options", "own"),
    [
        ("chatml", {}, CHATML),
        ("chatml", {}, NO_SYSTEM),
        ("internlm2", {}, INTERNLM2),
        ("qwen", {}, QWEN2),
        ("qwen", {"system": None}, CHATML),
        ("llama_3", {}, LLAMA_3),
        ("llama_2", {"system": None}, LLAMA_2),
    ],
)
def test_the_same_form(name: str, options: dict[str, Any], own: str) -> None:
    (finding,) = check_template("sft", coder(name, own, **options))
    assert finding.level == "ok"
    assert finding.what == f"sft: template {name!r} is the tokenizer's own chat template"


@pytest.mark.parametrize(
    ("name", "own", "ours", "theirs"),
    [
        ("chatml", INTERNLM2, "at the beginning it has '<|im_start|>", "own '<s><|im_start|>"),
        (
            "chatml",
            CHATML.replace("\n{% endfor", "{% endfor"),
            "<|im_end|>' it has '\\n<|im_",
            "own '<|im_st",
        ),
        ("vicuna_v1", CHATML, "at the beginning it has 'Be brief", "own '<|im_start|>"),
        ("llama_3", LLAMA_3.replace("'\n\n' + ", "'\n' + "), "it has '\\nBe", "own 'Be"),
        ("llama_2", LLAMA_2.replace("' ' + eos", "eos"), "it has ' </s>", "own '</s>"),
        ("chatml", NO_SYSTEM.replace("<|im_end|>", "</s>"), "it has '<|im_end|>", "own '</s>"),
    ],
)
def test_the_first_difference_is_named(name: str, own: str, ours: str, theirs: str) -> None:
    (finding,) = check_template("sft", coder(name, own))
    assert finding.level == "warning"
    assert ours in finding.what and theirs in finding.what, finding.what
    assert "stages.sft.template" in finding.remedy


def test_a_default_system_text_is_a_matter_of_choice() -> None:
    for name, options in (("chatml", {}), ("qwen", {"system": None})):
        (finding,) = check_template("sft", coder(name, QWEN2, **options))
        assert finding.level == "ok"
        assert "default system text" in finding.what and "own 'system\\n" in finding.what, finding.what


def test_what_max_tokens_would_cut_is_compared_all_the_same() -> None:
    # the difference comes after the last answer
    own = CHATML.replace("{% endfor %}", "{% endfor %}end")
    (finding,) = check_template("sft", coder("chatml", own, max_tokens=8))
    assert finding.level == "warning" and "own 'end'" in finding.what


def test_the_same_text_in_other_tokens_is_a_difference() -> None:
    encoder = coder("chatml", CHATML)
    # the chat template's text is read with a token that joins prompt and answer
    encoder.tokenizer.add_tokens(["\nA"])
    (finding,) = check_template("sft", encoder)
    assert finding.level == "warning" and "[" in finding.what


def test_nothing_to_compare() -> None:
    assert check_template("align", coder("plain", CHATML)) == []
    assert check_template("sft", coder("chatml", None)) == []


def test_a_template_that_cannot_be_rendered() -> None:
    (finding,) = check_template("sft", coder("chatml", "{{ raise_exception('not for chat') }}"))
    assert finding.level == "warning" and "not for chat" in finding.what


def test_the_doctor_says_so(make_config: Callable[..., RunConfig]) -> None:
    config = make_config()
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages["instruct"].train, seed=config.seed)
    for own, words in ((CHATML, "is the tokenizer's own"), (LLAMA_2, "is not the tokenizer's own")):
        captioner.tokenizer.chat_template = own
        said: list[str] = []
        checkup = Checkup(config, Ranks(), said.append)
        checkup.look_at_stage("instruct", captioner, *stage_data(config, "instruct", captioner))
        assert sum(words in line for line in said) == 1
