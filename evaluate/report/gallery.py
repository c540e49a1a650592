"""Which held-out items the report shows: drawn at random with a fixed seed, right and wrong ones apart."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.data.scenes.text import CAPTION_KINDS
from prismcap.evaluate.report.read import Record, ReportError

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True)
class Card:
    """One picture with what was asked, what is true and what the model said. `picture` is a data URI."""

    id: str
    picture: str | None
    prompt: str | None
    truth: str
    generated: str
    right: bool


@dataclass(frozen=True)
class Group:
    """The cards of one split and kind; of `num_right` and `num_wrong` items only some are shown."""

    title: str
    num_right: int
    num_wrong: int
    right: tuple[Card, ...]
    wrong: tuple[Card, ...]


def gallery(
    folder: Path, captions: Sequence[Record], control: str = "none", seed: int = 0, most_each: int = 10
) -> list[Group]:
    """A group for each split and kind: at most `most_each` right and as many wrong items, half of it
    for questions."""
    chosen = [record for record in captions if record["control"] == control]
    groups = []
    for split, kind in unique((record["split"], record["kind"]) for record in chosen):
        records = [record for record in chosen if (record["split"], record["kind"]) == (split, kind)]
        # the draw depends on split and kind alone: another group added leaves this one as it was
        rng = random.Random(f"{seed}/{split}/{kind}")
        most = most_each if kind in CAPTION_KINDS else (most_each + 1) // 2
        right = [record for record in records if record["right"]]
        wrong = [record for record in records if not record["right"]]
        groups.append(
            Group(
                title=f"{split} · {kind}",
                num_right=len(right),
                num_wrong=len(wrong),
                right=_cards(folder, rng.sample(right, min(most, len(right)))),
                wrong=_cards(folder, rng.sample(wrong, min(most, len(wrong)))),
            )
        )
    return groups


def _cards(folder: Path, records: Iterable[Record]) -> tuple[Card, ...]:
    return tuple(
        Card(
            id=str(record["id"]),
            picture=picture_uri(folder, record.get("picture")),
            prompt=None if record["kind"] in CAPTION_KINDS else record.get("prompt"),
            truth=str(record["truth"]),
            generated=str(record["generated"]),
            right=bool(record["right"]),
        )
        for record in records
    )


def picture_uri(folder: Path, name: Any, named_in: str = "captions.jsonl") -> str | None:
    """The picture as a data URI; None where the record, a row of `named_in`, names none.

    Raises ReportError when the file is missing, of an unknown type, or outside the run folder:
    a file of records from elsewhere must not pull other files into a page that is passed on.
    """
    if name is None:
        return None
    path = (folder / str(name)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ReportError(f"{folder / named_in}: picture {name!r} lies outside the run folder")
    if path.suffix.lower() not in MEDIA_TYPES:
        raise ReportError(f"{path}: a picture must be one of {', '.join(MEDIA_TYPES)}")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ReportError(
            f"{path}: missing, though {named_in} names it. Run prismcap evaluate again."
        ) from None
    return f"data:{MEDIA_TYPES[path.suffix.lower()]};base64,{base64.b64encode(content).decode()}"


def unique(values: Iterable[Any]) -> list[Any]:
    """The values without repeats, in order of first appearance."""
    return list(dict.fromkeys(values))
