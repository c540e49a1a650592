"""How long the samples of published training sets are, by the names under which the recipes know them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml
from pydantic import Field

from prismcap.configs.errors import DataError
from prismcap.configs.schema.base import Section
from prismcap.configs.schema.data import MixItem
from prismcap.data.length_mixes import LengthMix, load_length_mix

_FILE = Path(__file__).with_name("sets.yaml")


class PublishedSet(Section):
    """rows: published. like: the length mix whose samples stand for its own, or the named parts of it."""

    name: str
    rows: int = Field(ge=1)
    like: str
    parts: tuple[str, ...] | None = None


@cache
def published_sets() -> dict[str, PublishedSet]:
    """By the end of the path, as Path.match reads it."""
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {key: PublishedSet.model_validate(value) for key, value in content.items()}


def published_set(item: MixItem) -> PublishedSet:
    """The set that an item of a mix reads, known by the end of its `path`. Raises DataError for others."""
    path = str(item.options.get("path", ""))
    for end, known in published_sets().items():
        if Path(path).match(end):
            return known
    raise DataError(f"{item.name}: {path or 'its data'}: no published set is known by this path's end")


def published_mix(sets: Sequence[tuple[PublishedSet, int]]) -> LengthMix:
    """Of several sets, so many samples of each."""
    parts = []
    for published, num_samples in sets:
        like = load_length_mix(published.like).parts
        chosen = [part for part in like if published.parts is None or part.name in published.parts]
        total = sum(part.rows for part in chosen)
        for part in chosen:
            parts.append(part.model_copy(update={"rows": max(1, round(num_samples * part.rows / total))}))
    return LengthMix(parts=tuple(parts))
