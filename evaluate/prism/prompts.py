"""The prompts of the reason stage. Source of the texts: arXiv 2406.14544 and its published code."""

from __future__ import annotations

from prismcap.evaluate.benchmarks._contract import LETTERS, Question

_TASK = (
    "You are an excellent text-based reasoning expert. You are required to answer the question based on the "
    "detailed description of the image.\n\n"
)
# a reasoner that is told of a description and given none refuses, which is not what `blind` measures
_BLIND_TASK = "You are an excellent text-based reasoning expert. You are required to answer the question.\n\n"
_SELECT = "Please select the correct answer from the options above. \n"
_ALREADY_LABELLED = ("question:", "hint:")


def options_text(question: Question) -> str:
    """`Options:` and a line for each, `A. …`; empty where the answer is free."""
    if not question.options:
        return ""
    lines = (f"{letter}. {option}\n" for letter, option in zip(LETTERS, question.options, strict=False))
    return "Options:\n" + "".join(lines)


def question_text(question: Question) -> str:
    """The question as a reasoner reads it: text, hint, options and the call to select one of them."""
    parts = [question.text]
    if question.hint:
        parts.append(f"Hint: {question.hint}")
    if not question.options:
        return "\n".join(parts)
    return "\n".join(parts) + "\n" + options_text(question) + _SELECT


def reasoning_prompt(question: Question, description: str | None) -> str:
    """The whole prompt of a reasoner; without a description it is the blind prompt."""
    text = question_text(question)
    if not text.lower().startswith(_ALREADY_LABELLED):
        text = f"Question: {text}"
    if description is None:
        return f"{_BLIND_TASK}{text}\n"
    return f"{_TASK}Description: {description}\n{text}\n"


def end_to_end_prompt(question: Question) -> str:
    """What a perceiver is told that answers the question itself, with the picture before it."""
    return question_text(question)
