"""MiniGPT-4's coverage: how many of a picture's ground-truth captions a description covers.

Source: MiniGPT-4, arXiv 2304.10592: an LLM says whether a description covers the objects and
relations of COCO's captions. Asked here caption by caption; the prompt is our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.base import Section
from prismcap.evaluate.judged.files import id_of, read_json, row_of, text_of
from prismcap.evaluate.judged.protocols._contract import JudgedItem, Part, ProtocolContext, Reading, Scale
from prismcap.evaluate.judged.protocols._prompting import first_line, quoted

PROMPT_VERSION = "coverage 1"  # raise it with the prompt, or with how replies are read
QUESTION = "Describe this image in detail."
PROMPT = (
    "A person who saw a picture wrote a caption of it. A model described the same picture. Does the "
    "description cover the caption: does it mention the main objects that the caption names, and what they "
    "do or how they stand to each other? Other words for the same thing count; further details of the "
    "description do not matter.\n\n"
    "The caption:\n{caption}\n\nThe description:\n{description}\n\n"
    "Write Yes or No on the first line and nothing else there. Name what is missing, if anything, on the "
    "second."
)
SCALE = Scale("% of a picture's captions that the description covers, mean over pictures", level="nominal")
_VERDICT = re.compile(r"(?:(?:answer|verdict)\s*[:=]\s*)?(yes|no)\b(?:\s*[.,;:!–—-].*)?", re.I)


class Options(Section):
    captions: str = Field(
        description="COCO's layout: {annotations: [{image_id, caption}], images: [{id, file_name}]}; without "
        "images, a picture's file is <image_id>.jpg"
    )
    ids_file: str | None = Field(default=None, description="JSON list of the image_ids to take; none: all")


@dataclass(frozen=True)
class CoverageProtocol:
    """captions: by item id; each is a part of its own."""

    items: tuple[JudgedItem, ...]
    captions: Mapping[str, tuple[str, ...]]
    prompt_version: str = PROMPT_VERSION
    published: tuple[int, int] | None = None
    scale: Scale = SCALE

    def parts(self, item: JudgedItem, answers: Mapping[str, str]) -> list[Part]:
        description = quoted("description", answers[item.id])
        return [
            Part(
                f"caption_{number}",
                PROMPT.format(caption=quoted("caption", text), description=description),
            )
            for number, text in enumerate(self.captions[item.id], start=1)
        ]

    def read(self, part: str, reply: str) -> Reading | None:  # noqa: ARG002
        found = _VERDICT.fullmatch(first_line(reply))
        if found is None:
            return None
        covered = float(found[1].lower() == "yes")
        return Reading(covered, 1.0, found[1].lower(), rank=covered)


def build(options: Options, context: ProtocolContext) -> CoverageProtocol:
    """Raises ConfigError for a file that is not there, DataError for one that is not in COCO's layout."""
    path, data = read_json(options.captions, f"{context.where}.captions")
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise DataError(f"{path}: expected {{annotations: [{{image_id, caption}}, …]}}, COCO's layout")
    names = _file_names(path, data)
    captions: dict[str, list[str]] = {}
    items: dict[str, JudgedItem] = {}
    for number, values in enumerate(data["annotations"]):
        row = row_of(values, f"{path}, annotations[{number}]")
        identity = id_of(row, "image_id")
        captions.setdefault(identity, []).append(text_of(row, "caption"))
        image = names.get(identity, f"{identity}.jpg")
        items.setdefault(identity, JudgedItem(identity, QUESTION, image, row.where))
    kept = _kept(options, context, items, path)
    for identity in kept:
        # a reader of the results sees them; the judge is asked about each by itself
        items[identity] = replace(items[identity], reference="\n".join(captions[identity]))
    return CoverageProtocol(
        tuple(items[identity] for identity in kept),
        {identity: tuple(captions[identity]) for identity in kept},
    )


def _file_names(path: Path, data: Mapping[str, Any]) -> dict[str, str]:
    images = data.get("images") or []
    rows = (row_of(values, f"{path}, images[{number}]") for number, values in enumerate(images))
    return {id_of(row, "id"): text_of(row, "file_name") for row in rows}


def _kept(
    options: Options, context: ProtocolContext, items: Mapping[str, JudgedItem], path: Path
) -> list[str]:
    if not items:
        raise DataError(f"{path}: no annotations")
    if options.ids_file is None:
        return list(items)
    file, ids = read_json(options.ids_file, f"{context.where}.ids_file")
    if not isinstance(ids, list) or not ids:
        raise DataError(f"{file}: expected a JSON list of image_ids")
    chosen = dict.fromkeys(str(identity) for identity in ids)
    for identity in chosen:
        if identity not in items:
            raise ConfigError(
                f"{context.where}.ids_file: {resolve_path(options.ids_file)}: image_id {identity!r} has no "
                f"caption in {path}"
            )
    return list(chosen)
