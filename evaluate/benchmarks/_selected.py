"""Some of a benchmark's questions: those of a file of ids (see _subset.py), and the first so many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.schema.base import Section
from prismcap.data.schema import DataError
from prismcap.evaluate.benchmarks._contract import Benchmark, Question


class SelectedOptions(Section):
    """The keys that every benchmark of this folder has."""

    ids_file: str | None = Field(default=None, description="JSON with `ids`: only these questions are asked")
    limit: int | None = Field(
        default=None, ge=1, description="the first so many of them; a circle of rotations counts as one"
    )


class Selected:
    """The questions of `inner` at `positions`. tag: what else decides which they are, for the checksum."""

    def __init__(self, inner: Benchmark, positions: Sequence[int], tag: str) -> None:
        self._inner = inner
        self._positions = tuple(positions)
        self._tag = tag

    @property
    def checksum(self) -> str:
        text = f"{self._inner.checksum}\n{self._tag}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int, /) -> Question:
        if not 0 <= position < len(self):
            raise IndexError(f"question {position} of {len(self)}")
        return self._inner[self._positions[position]]


def select(inner: Benchmark, units: Sequence[str], options: SelectedOptions) -> Benchmark:
    """What the options leave of a benchmark; itself where they say nothing.

    units: by position, what is taken or left as a whole: a question's id, or its circle's.
    Raises DataError: the file is no such file, is of other questions, or names one that is not there.
    """
    if options.ids_file is None and options.limit is None:
        return inner
    kept = set(units)
    tags = []
    if options.ids_file is not None:
        ids = _read_ids(resolve_path(options.ids_file), kept, inner.checksum)
        kept &= ids
        tags.append(json.dumps(sorted(kept)))
    if options.limit is not None:
        ordered = dict.fromkeys(unit for unit in units if unit in kept)
        kept = set(list(ordered)[: options.limit])
        tags.append(f"limit {options.limit}")
    return Selected(inner, [i for i, unit in enumerate(units) if unit in kept], "\n".join(tags))


def _read_ids(path: Path, known: set[str], checksum: str) -> set[str]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check ids_file.") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}. Check ids_file.") from error
    ids = found.get("ids") if isinstance(found, dict) else None
    if not isinstance(ids, list) or not ids or not all(isinstance(item, str) for item in ids):
        raise DataError(f"{path}, key 'ids': expected a list of question ids as texts, not empty")
    made_for = found.get("checksum")
    if made_for not in (None, checksum):
        raise DataError(
            f"{path}, key 'checksum': {made_for!r}, but the questions are {checksum!r}: the ids were chosen "
            "among others. Use the same file, split and circular as then, without a limit; or make new ids"
        )
    missing = [item for item in ids if item not in known]
    if missing:
        raise DataError(
            f"{path}, key 'ids': {missing[0]!r} is no question of this benchmark ({len(missing)} such ids)"
        )
    return set(ids)
