"""LLaVA-Bench (In-the-Wild): 24 pictures, 60 questions, each picture known from a detailed caption.

Source: arXiv 2304.08485, section 5.1; files `questions.jsonl`, `context.jsonl` and `answers_gpt4.jsonl` of
the benchmark's data set.
"""

from __future__ import annotations

from prismcap.evaluate.judged.files import Row, texts_of
from prismcap.evaluate.judged.protocols._contract import ProtocolContext
from prismcap.evaluate.judged.protocols._pairs import PairOptions, PairProtocol, build_pairs


class Options(PairOptions):
    """contexts: rows {image, caption}; the caption is a text or a list of texts."""


def build(options: Options, context: ProtocolContext) -> PairProtocol:
    """Raises as build_pairs."""
    return build_pairs(options, context, caption, published=(60, 24))


def caption(row: Row) -> str:
    return "\n".join(texts_of(row, "caption"))
