"""Whole JSON files as people have them: an array, an object, or an object per line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from prismcap.configs.errors import DataError


@dataclass(frozen=True)
class Row:
    """One object of a file. where: file and place, for errors."""

    where: str
    values: dict[str, Any]

    def key_of(self, keys: Sequence[str]) -> str:
        """The first of the keys that is there. Raises DataError where none is."""
        found = next((key for key in keys if key in self.values), None)
        if found is None:
            raise DataError(
                f"{self.where}: none of the keys {', '.join(keys)}; it has {shown(list(self.values))}"
            )
        return found

    def text_of(self, key: str) -> str:
        """Raises DataError where the key holds no text."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise DataError(f"{self.where}, key {key!r}: expected a text, found {shown(value)}")
        return value

    def optional_text_of(self, key: str) -> str:
        """An empty one where there is no such key. Raises as text_of."""
        return self.text_of(key) if key in self.values else ""

    def texts_of(self, key: str) -> tuple[str, ...]:
        """Raises DataError where the key holds no list of texts."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise DataError(f"{self.where}, key {key!r}: expected a list of texts, found {shown(value)}")
        return tuple(value)

    def id_of(self, key: str) -> str:
        """A number or a text, as text. Raises DataError for anything else, and for nothing."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise DataError(f"{self.where}, key {key!r}: expected a number or a text, found {shown(value)}")
        return str(value)


@dataclass(frozen=True)
class JsonFile:
    """rows: of an array or of lines. whole: the object that is the file, if it is one with a COCO key."""

    path: Path
    checksum: str
    rows: tuple[Row, ...]
    whole: dict[str, Any] | None = None


def read_json_file(path: Path, what: str) -> JsonFile:
    """Raises DataError, naming `what` the file should be, where it is missing, empty or no such JSON."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected {what}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}; expected {what}") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected {what}")
    checksum = hashlib.blake2b(content, digest_size=8).hexdigest()
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return JsonFile(path, checksum, _lines(path, text, what))
    if isinstance(value, dict) and "annotations" in value:
        return JsonFile(path, checksum, (), value)
    if isinstance(value, dict):
        return JsonFile(path, checksum, (Row(f"{path}, line 1", value),))
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: {shown(value)} has no rows; expected {what}")
    places = (f"{path}, row {number}" for number in range(len(value)))
    return JsonFile(path, checksum, tuple(map(_row, places, value)))


def _lines(path: Path, text: str, what: str) -> tuple[Row, ...]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON: {error}; expected {what}") from error
        rows.append(_row(where, value))
    return tuple(rows)


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {shown(value)}")
    return Row(where, value)


def check_once(rows: Iterable[tuple[str, str, str]], remedy: str) -> None:
    """Of (where, key, id). Raises DataError for the first id that an earlier row has; remedy: its end, from
    the mark after "too" on."""
    seen: dict[str, str] = {}
    for where, key, id in rows:
        if id in seen:
            raise DataError(f"{where}, key {key!r}: {id!r} is that of {seen[id]} too{remedy}")
        seen[id] = where


def name_of(image: str) -> str:
    """A picture's file name, wherever it lies."""
    return PurePath(image).name


def shown(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
