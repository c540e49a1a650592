"""What perceivers are told: the paper's six texts, and what a reasoner adds for each question.

Source of the texts and of the task: arXiv 2406.14544 and its published code; the questions of the few-shot
pairs are our own. What a reasoner wrote is cleaned before it is joined (written_parts.py).
"""

from __future__ import annotations

from prismcap.configs.schema.prism import InstructionConfig, InstructionKey
from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.prism.prompts import options_text

_HUMAN1 = (
    "Describe the fine-grained content of the image, including scenes, objects, relationships, instance "
    "location, and any text present."
)
INSTRUCTIONS: dict[InstructionKey, str] = {
    "human1": _HUMAN1,
    "human2": (
        "Describe the fine-grained content of the image, including scenes, objects, relationships, instance "
        "location, background, and any text present. Please skip generating statements for non-existent "
        "contents and describe all you see. "
    ),
    "gpt1": "Given the image below, please provide a detailed description of what you see.",
    "gpt2": "Analyze the image below and describe the main elements and their relationship.",
    "cot": f"{_HUMAN1} Let's think step by step.",
    "decompose": (
        "Decompose the image into several parts and describe the fine-grained content of the image part by "
        "part, including scenes, objects, relationships, instance location, and any text present."
    ),
}
WRITER_TASK = (
    "Your task is to give an concise instruction about what basic elements are needed to be described based "
    "on the given question. Ensure that your instructions do not cover the raw question, options or thought "
    "process of answering the question."
)
FEW_SHOT = (
    ("Which of the companies listed employs the most people full time?", "the number of full time employees"),
    ("Which month has the lowest bar in the chart?", "the heights of all bars and their values"),
    ("What is this photograph mainly about?", "the central theme or object"),
    ("Where does the catcher crouch, seen from home plate?", "the spatial arrangement of the objects"),
    ("In which ratio do the traits appear among the offspring of this cross?", "the genetic information"),
)
CONTENTS = "Contents to observe:"


def generic_text(instruction: InstructionConfig) -> str:
    """The text for every question: the config's own, else the paper's of its key (human1 without one)."""
    return instruction.text or INSTRUCTIONS[instruction.key or "human1"]


def specific_text(instruction: InstructionConfig, part: str | None) -> str:
    """The generic text and what a question makes worth seeing; without a part, the generic text."""
    generic = generic_text(instruction)
    if part is None:
        return generic
    return f"{generic.rstrip()} Especially, pay attention to {part.rstrip('. ')}."


def writer_prompt(question: Question, options_shown: bool) -> str:
    """The prompt that asks a reasoner what the picture should be searched for."""
    pairs = "".join(f"Question: {asked}\n{CONTENTS} {contents}\n\n" for asked, contents in FEW_SHOT)
    options = options_text(question) if options_shown else ""
    return f"{WRITER_TASK}\n\n{pairs}Question: {question.text}\n{options}{CONTENTS} "
