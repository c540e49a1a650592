"""The files of a judged evaluation: rows with their places, and texts joined by question_id."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError, DataError

_MOST_NAMED = 5  # ids in one error
TEXT_KEYS = ("text", "answer")  # LLaVA's files say text, OwlEval's answer


@dataclass(frozen=True)
class Row:
    """One object of a file. where: file and line or place, for errors."""

    values: Mapping[str, Any]
    where: str


def read_rows(file: str, at: str) -> list[Row]:
    """The rows of a JSONL file, at least one. at: the config's key that names it.

    Raises ConfigError where there is no such file, DataError naming the line that is no object.
    """
    path, data = _read_bytes(file, at)
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:  # of the encoding as well
            raise DataError(f"{where}: not a JSON object in UTF-8 ({error}). One object per line") from error
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected an object, found {type(values).__name__}")
        rows.append(Row(values, where))
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def row_of(values: Any, where: str) -> Row:
    """One value of a JSON file. Raises DataError where it is no object."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: expected an object, found {values!r}")
    return Row(values, where)


def read_json(file: str, at: str) -> tuple[Path, Any]:
    """The path and the value of a JSON file that names no key twice. Errors as read_rows."""
    path, data = _read_bytes(file, at)
    try:
        return path, json.loads(data, object_pairs_hook=_unique)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON in UTF-8: {error}") from error


def _read_bytes(file: str, at: str) -> tuple[Path, bytes]:
    path = resolve_path(file)
    if not path.is_file():
        raise ConfigError(f"{at}: {file}: no such file")
    try:
        return path, path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is there twice; keep one of the two")
        values[key] = value
    return values


def id_of(row: Row, key: str = "question_id") -> str:
    """A text or a whole number, as text. Raises DataError."""
    value = row.values.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{row.where}: {key!r} must be a whole number or a text, found {value!r}")
    return str(value)


def text_of(row: Row, key: str) -> str:
    """Raises DataError."""
    value = row.values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.where}: {key!r} must be a text, found {value!r}")
    return value.strip()


def texts_of(row: Row, key: str) -> tuple[str, ...]:
    """A text, or a list of at least one. Raises DataError."""
    value = row.values.get(key)
    texts: list[Any] = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{row.where}: {key!r} must be a text or a list of texts, found {value!r}")
    return tuple(text.strip() for text in texts)


def by_key(rows: Sequence[Row], key_of: Callable[[Row], str], what: str = "question_id") -> dict[str, Row]:
    """Raises DataError where two rows have one key."""
    found: dict[str, Row] = {}
    for row in rows:
        key = key_of(row)
        if key in found:
            raise DataError(
                f"{row.where}: {what} {key!r} is in {found[key].where} already; keep one of the two"
            )
        found[key] = row
    return found


def by_image(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows about pictures by the picture's name. Raises DataError where two are about one."""
    return by_key(rows, lambda row: text_of(row, "image"), what="image")


def texts_by_question(
    rows: Sequence[Row], ids: Mapping[str, str], file: str, what: str, questions: str
) -> dict[str, str]:
    """Question's id -> text, one for every question. ids: what a row may say -> question's id.

    what: the kind of text, for errors. The text may be empty: a model may say nothing.
    Raises DataError for a row without a question, a question without a row or with two.
    """
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for row in rows:
        said = id_of(row, _id_key(row))
        if said not in ids:
            raise DataError(
                f"{row.where}: question_id {said!r}: no such question in {questions}. Delete the row, or "
                "correct its question_id"
            )
        identity = ids[said]
        if identity in texts:
            raise DataError(
                f"{row.where}: question_id {said!r} is in {places[identity]} already; keep one of the two"
            )
        texts[identity], places[identity] = _said(row), row.where
    absent = [identity for identity in dict.fromkeys(ids.values()) if identity not in texts]
    if absent:
        named = ", ".join(absent[:_MOST_NAMED]) + (", …" if len(absent) > _MOST_NAMED else "")
        total = len(absent) + len(texts)
        raise DataError(
            f"{file}: no {what} for {len(absent)} of {total} questions: question_id {named}. Add a row "
            "{question_id, text} for each"
        )
    return texts


def _id_key(row: Row) -> str:
    """Descriptions of pictures may say image_id, which is then the question's id."""
    return "image_id" if "image_id" in row.values and "question_id" not in row.values else "question_id"


def _said(row: Row) -> str:
    for key in TEXT_KEYS:
        if isinstance(value := row.values.get(key), str):
            return value.strip()
    found = {key: row.values[key] for key in TEXT_KEYS if key in row.values}
    raise DataError(f"{row.where}: {' or '.join(map(repr, TEXT_KEYS))} must be a text, found {found or None}")


def as_rows(path: Path, texts: Any) -> list[Row]:
    """{question_id: text} (MM-Vet's results) as rows. Raises DataError."""
    if not isinstance(texts, dict) or not texts:
        raise DataError(f"{path}: expected {{question_id: text, …}}; rows of JSON go into a .jsonl file")
    return [
        Row({"question_id": identity, "text": text}, f"{path}, {identity!r}")
        for identity, text in texts.items()
    ]
