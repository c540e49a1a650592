"""Does the stage's template write a conversation as the tokenizer's own chat template does.

A difference is no error: LLaVA trains base models on a template that is foreign to them. An LLM that was
tuned for chat knows its own form, and a stray line break or system text costs it something.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Literal

from jinja2 import TemplateError

from prismcap.data.encode import Encoder
from prismcap.data.schema import Message, SampleRejected, TextPart
from prismcap.train.doctor.findings import Finding, ok, warning

SYSTEM = "Be brief."
TURNS: tuple[tuple[Literal["user", "assistant"], str], ...] = (
    ("user", "What is it?"),
    ("assistant", "A cat."),
    ("user", "Are you sure?"),
    ("assistant", "Yes."),
)
SHOWN_TOKENS = 8


def check_template(stage: str, encoder: Encoder) -> list[Finding]:
    """Compares ids of a conversation of two turns, with a system message and without.

    Nothing is found where there is nothing to compare: the tokenizer has no chat template, or the stage's
    template takes one turn only (plain). What differs without a system message alone is the default system
    text, a matter of choice.
    """
    if not getattr(encoder.tokenizer, "chat_template", None):
        return []
    what = f"{stage}: template {encoder.template.spec.name!r}"
    try:
        without = _difference(encoder, None)
    except SampleRejected:
        return []
    except TemplateError as problem:
        return [_unlike(f"{what}: the tokenizer's own chat template cannot be rendered: {problem}", stage)]
    try:
        form = _difference(encoder, SYSTEM)
    except TemplateError:  # a model that takes no system message
        form = without
    if form is not None:
        return [_unlike(f"{what} is not the tokenizer's own chat template: {form}", stage)]
    if without is not None:
        return [ok(f"{what} is the tokenizer's own, but for the default system text: {without}")]
    return [ok(f"{what} is the tokenizer's own chat template")]


def _unlike(what: str, stage: str) -> Finding:
    return warning(
        what,
        f"Fine for a base model. For one tuned for chat choose its own form: stages.{stage}.template",
    )


def _difference(encoder: Encoder, system: str | None) -> str | None:
    """Where the two begin to differ, in words; None where they do not. Raises TemplateError."""
    messages = [Message("system", (TextPart(system),))] if system else []
    # train: prompt and answer are never tokenised as one
    messages += [Message(role, (TextPart(text),), train=role == "assistant") for role, text in TURNS]
    chat = [{"role": message.role, "content": message.text()} for message in messages]
    text = encoder.tokenizer.apply_chat_template(chat, tokenize=False)
    ours = encoder.text_ids(messages)
    theirs = list(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
    if ours == theirs:
        return None
    pairs = zip(ours, theirs, strict=False)  # one may end before the other
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    before = encoder.decode(ours[max(0, same - SHOWN_TOKENS) : same])
    ours, theirs = ours[same : same + SHOWN_TOKENS], theirs[same : same + SHOWN_TOKENS]
    shown = [encoder.decode(ids) for ids in (ours, theirs)]
    if all(shown) and (shown[0].startswith(shown[1]) or shown[1].startswith(shown[0])):
        # the same text in other tokens
        shown = [str(encoder.tokenizer.convert_ids_to_tokens(ids)) for ids in (ours, theirs)]
    place = f"after {before!r}" if before else "at the beginning"
    return f"{place} it has {shown[0]!r}, the tokenizer's own {shown[1]!r}"
