"""Rows of a JSON file, an array or one row per line (JSONL), found without holding the file.

Only the position of each row is kept in memory; a row is parsed when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prismcap.data.schema import DataError, SampleRejected

_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\n"
_BLOCK_BYTES = 1 << 24


def file_state(path: Path) -> str:
    """Path, size and time of change: another text once the file is another one. Raises DataError."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the source's path.") from error
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"


class JsonRows:
    """Random access to the rows of one file. Raises DataError at once for a file that is no such JSON.

    key: what every row must have; shape: a row in words, for errors. limit: only the first rows.
    """

    def __init__(self, path: Path, key: str, shape: str, limit: int | None = None) -> None:
        self.path = path
        # int64 [rows, 2]: offset and length in bytes; 16 bytes a row, where parsed rows take kilobytes
        self._places = _index_rows(path, key, shape, limit)
        self._state = file_state(path)

    def __len__(self) -> int:
        return len(self._places)

    def fingerprint(self) -> str:
        """The file's state, and the rows that are taken."""
        return f"{self._state} {len(self)}"

    def where(self, index: int) -> str:
        """The row, for errors."""
        return f"{self.path}, row {index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`, counted from 0. Raises SampleRejected("row_malformed") when it is no object."""
        offset, length = (int(value) for value in self._places[index])
        # opened for each row: a file position shared with forked workers would be moved by all of them
        with self.path.open("rb") as stream:
            stream.seek(offset)
            raw = stream.read(length)
        try:
            row = json.loads(raw)
        except ValueError as error:
            raise SampleRejected("row_malformed", f"{self.where(index)}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            message = f"{self.where(index)}: expected an object, found {type(row).__name__}"
            raise SampleRejected("row_malformed", message)
        return row


def short(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _index_rows(path: Path, key: str, shape: str, limit: int | None) -> np.ndarray:
    """int64 [rows, 2]: offset and length in bytes of every row, in order."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_BLOCK_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the source's path.") from error
    first = head.removeprefix(_BOM).lstrip(_WHITE)[:1]
    if first == b"[":
        rows = _array_rows(path)
    elif first == b"{":
        rows = _line_rows(path, key, shape)
    else:
        raise DataError(
            f"{path}: not JSON: it starts with {first!r}; expected an array of rows, or JSON lines"
        )
    places: list[tuple[int, int]] = []
    for place in rows:
        places.append(place)
        if len(places) == limit:
            break
    if not places:
        raise DataError(f"{path}: no rows")
    return np.array(places, dtype=np.int64)


def _line_rows(path: Path, key: str, shape: str) -> Iterator[tuple[int, int]]:
    """Non-empty lines. The first must be JSON, or the file is no JSONL; later ones are judged row by row."""
    offset = 0
    first = True
    with path.open("rb") as stream:
        for line in stream:
            start = len(_BOM) if offset == 0 and line.startswith(_BOM) else 0
            if line[start:].strip(_WHITE):
                if first:
                    _check_first_line(path, line[start:], key, shape)
                    first = False
                yield offset + start, len(line) - start
            offset += len(line)


def _check_first_line(path: Path, line: bytes, key: str, shape: str) -> None:
    try:
        row = json.loads(line)
    except ValueError as error:
        message = f"{path}: neither a JSON array of rows nor JSON lines: line 1: {error}"
        raise DataError(message) from error
    if key not in row and len(row) == 1:
        raise DataError(
            f"{path}: a single object with the key {next(iter(row))!r}, not rows; "
            f"expected an array, or lines, of {shape}"
        )


def _array_rows(path: Path) -> Iterator[tuple[int, int]]:
    """Elements of a JSON array, found without holding more than a block and a row of the file.

    The bytes are read as Latin-1, one character each, so that positions in the text are offsets in
    the file; JSON's own signs are ASCII, so the bounds of the rows come out right.
    """
    scan = json.JSONDecoder().raw_decode
    with path.open("rb") as stream:
        text = stream.read(_BLOCK_BYTES).decode("latin-1")
        base = 0  # offset in the file of text[0]
        at = text.index("[") + 1
        ended = False
        while True:
            if not ended and len(text) - at < _BLOCK_BYTES // 4:
                more = stream.read(_BLOCK_BYTES)
                ended = not more
                text, base, at = text[at:] + more.decode("latin-1"), base + at, 0
            at = _skip(text, at, " \t\r\n,")
            if at < len(text) and text[at] == "]":
                return
            try:
                _, end = scan(text, at)
            except ValueError as error:
                more = stream.read(_BLOCK_BYTES)
                if not more:
                    raise DataError(f"{path}: not valid JSON at byte {base + at}: {error}") from error
                text += more.decode("latin-1")  # a row longer than what was read
                continue
            yield base + at, end - at
            at = end


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
