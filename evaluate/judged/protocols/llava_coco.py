"""LLaVA's 30 pictures of COCO val2014, three questions each: conversation, detail, complex reasoning.

Source: arXiv 2304.08485, section 5.1; files `qa90_questions.jsonl`, `caps_boxes_coco2014_val_80.jsonl` and
`qa90_gpt4_answer.jsonl` of the original repository.
"""

from __future__ import annotations

from typing import Any

from prismcap.configs.errors import DataError
from prismcap.evaluate.judged.files import Row, texts_of
from prismcap.evaluate.judged.protocols._contract import ProtocolContext
from prismcap.evaluate.judged.protocols._pairs import PairOptions, PairProtocol, build_pairs


class Options(PairOptions):
    """contexts: rows {image, captions: [text, …], instances: [{category, bbox}, …]}; instances may be
    absent."""


def build(options: Options, context: ProtocolContext) -> PairProtocol:
    """Raises as build_pairs."""
    return build_pairs(options, context, captions_and_boxes, published=(90, 30))


def captions_and_boxes(row: Row) -> str:
    """Captions, then boxes as `category: [x1, y1, x2, y2]`, a line each."""
    lines = list(texts_of(row, "captions"))
    instances = row.values.get("instances", [])
    if not isinstance(instances, list):
        raise DataError(f"{row.where}: 'instances' must be a list of {{category, bbox}}, found {instances!r}")
    boxes = [_box(row, instance) for instance in instances]
    return "\n".join([*lines, "", *boxes] if boxes else lines)


def _box(row: Row, instance: Any) -> str:
    if not isinstance(instance, dict) or not {"category", "bbox"} <= instance.keys():
        raise DataError(f"{row.where}: an instance must be {{category, bbox}}, found {instance!r}")
    return f"{instance['category']}: {instance['bbox']}"
