"""Descriptions that are there already: JSONL, a row per question or per picture.

`{"benchmark": …, "id": …, "text": …}`: the whole description of a question's pictures.
`{"fingerprint": …, "text": …}`: of one picture (data/schema.py: ImageRef.fingerprint); several are joined as
everywhere. Other keys are ignored, and so is the instruction. A question's own row goes before its pictures'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.data.schema import DataError
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.perceivers._contract import PerceiverContext, PerceiveRequest
from prismcap.evaluate.perceivers._several import joined

Key = tuple[str, ...]  # (benchmark, id) or (fingerprint,)


class Options(Section):
    path: str = Field(description="JSONL file of descriptions")


@dataclass
class Descriptions:
    """Texts by key, as far as they are read, and the line that each stands in."""

    texts: dict[Key, str] = field(default_factory=dict)
    lines: dict[Key, int] = field(default_factory=dict)
    checksum: str = ""


@dataclass(frozen=True)
class FilePerceiver:
    path: Path

    @cached_property
    def _read(self) -> Descriptions:
        return read_descriptions(self.path)

    @property
    def identity(self) -> str:
        return f"file {self._read.checksum}"

    @cached_property
    def needs_pictures(self) -> bool:
        """Only where all rows are of pictures: two questions about one may have rows of their own."""
        return all(len(key) == 1 for key in self._read.texts)

    def describe(self, requests: Sequence[PerceiveRequest]) -> Iterator[tuple[int, Answer]]:
        for position, request in enumerate(requests):
            text = self._read.texts.get((request.benchmark, request.question_id))
            yield position, self._of_pictures(request) if text is None else Answer(text=text)

    def _of_pictures(self, request: PerceiveRequest) -> Answer:
        at = f"benchmark {request.benchmark!r}, id {request.question_id!r}"
        of_pictures = any(len(key) == 1 for key in self._read.texts)
        if not of_pictures or not request.images:
            return failed(f"{self.path}: no row for {at}")
        parts = []
        for image in request.images:
            try:
                fingerprint = image.fingerprint()
            except DataError as error:
                parts.append(failed(str(error)))
                continue
            text = self._read.texts.get((fingerprint,))
            missing = f"{self.path}: no row for {at}, nor for its picture's fingerprint {fingerprint!r}"
            parts.append(failed(missing) if text is None else Answer(text=text))
        return joined(parts)


def read_descriptions(path: Path) -> Descriptions:
    """All rows of the file. Raises DataError naming the lines of a bad or repeated row."""
    found = Descriptions()
    digest = hashlib.blake2b(digest_size=8)
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                digest.update(line)
                if line.strip():
                    _add_row(found, line, number, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"{path}: the descriptions cannot be read: {error}") from error
    found.checksum = digest.hexdigest()
    return found


def _add_row(found: Descriptions, line: bytes, number: int, where: str) -> None:
    try:
        row = json.loads(line)
    except ValueError as error:  # of the encoding as well
        raise DataError(f"{where}: not a JSON object in UTF-8: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {type(row).__name__}")
    key = _key(row, where)
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{where}: 'text' must be a description, found {text!r}; leave the row out if there is none"
        )
    if key in found.texts:
        raise DataError(
            f"{where}: {' '.join(key)!r} has a row in line {found.lines[key]} already; keep one of the two"
        )
    found.texts[key] = text.strip()
    found.lines[key] = number


def _key(row: dict[str, Any], where: str) -> Key:
    of_question, of_picture = {"benchmark", "id"} <= row.keys(), "fingerprint" in row
    if of_question == of_picture:
        raise DataError(
            f"{where}: give 'benchmark' and 'id', or 'fingerprint', and not both; "
            f"found the keys {sorted(row)}"
        )
    values = [row["benchmark"], row["id"]] if of_question else [row["fingerprint"]]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(
                f"{where}: {value!r} must be a text" + (" or a whole number" if of_question else "")
            )
    return tuple(str(value) for value in values)


def build(options: Options, context: PerceiverContext) -> FilePerceiver:
    """Raises ConfigError where there is no such file."""
    path = resolve_path(options.path)
    if not path.is_file():
        raise ConfigError(f"perceivers.{context.name}.path: {options.path}: no such file")
    return FilePerceiver(path)
