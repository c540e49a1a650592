"""Rows of a tab-separated file, found in one pass without holding the file.

Quoting is that of Python's csv module (and of pandas, which writes VLMEvalKit's files): a field that opens
with `"` ends at the next lone `"`, and may hold tabs and line breaks. The csv module itself is not used: it
tells no offsets, and its bound for a field's length, which pictures exceed, is one for the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from prismcap.data.schema import DataError

MAX_ROW_BYTES = 1 << 27  # several pictures of any camera; more is a quote that nobody closed
_BOM = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
Span = tuple[int, int]  # of a field's bytes in its row, quotes included


@dataclass
class Row:
    """number: from 1, the header not counted (it is 0). offset: in the file, in bytes."""

    number: int
    offset: int
    content: bytearray = field(default_factory=bytearray)
    spans: list[Span] = field(default_factory=list)

    def raw(self, column: int) -> bytes:
        """A field's bytes, quotes included."""
        start, end = self.spans[column]
        return bytes(memoryview(self.content)[start:end])


def read_rows(path: Path) -> Iterator[Row]:
    """Header first, then every row that is not empty; no more than one row is in memory.

    Raises DataError naming file and row: unreadable, a quote that is not closed, a lone carriage return.
    """
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as stream:
            yield from _rows(stream, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the benchmark's path.") from error


def _rows(stream: BinaryIO, path: Path) -> Iterator[Row]:
    number = offset = 0
    while True:
        row = Row(number, offset)
        scan = _Scan(row, f"{path}, row {number}")
        line = stream.readline(MAX_ROW_BYTES)
        if offset == 0 and line.startswith(_BOM):
            offset, row.offset, line = len(_BOM), len(_BOM), line[len(_BOM) :]
        if not line:
            return
        while not scan.add(line):
            line = stream.readline(MAX_ROW_BYTES)
            if not line:
                raise DataError(
                    f'{path}, row {number}: a quote (") at the start of a field is never closed: the file is '
                    "cut short, or was written without quoting"
                )
        offset += len(row.content)
        if row.content.strip(b"\r\n"):
            yield row
            number += 1


class _Scan:
    """Finds the fields of one row while its lines come in; nothing is looked at twice."""

    def __init__(self, row: Row, where: str) -> None:
        self._row = row
        self._where = where
        self._start = 0  # of the field that is being read
        self._at = 0  # where to look on
        self._quoted = False

    def add(self, line: bytes) -> bool:
        """Whether the row is complete with this line."""
        content = self._row.content
        content += line
        if len(content) >= MAX_ROW_BYTES:
            raise DataError(
                f"{self._where}: longer than {MAX_ROW_BYTES >> 20} MiB. A quote may not be closed; "
                "larger pictures go into files (column image_path)"
            )
        end = len(content) - (2 if line.endswith(b"\r\n") else 1 if line.endswith(b"\n") else 0)
        while True:
            if self._at == self._start and content.startswith(b'"', self._start):
                self._quoted, self._at = True, self._at + 1
            if self._quoted:
                close = closing_quote(content, self._at)
                if close < 0:
                    self._at = len(content)
                    return False
                self._quoted, self._at = False, close + 1
            tab = content.find(b"\t", self._at)
            stop = end if tab < 0 else tab
            if content.find(b"\r", self._at, stop) >= 0:
                raise DataError(
                    f"{self._where}: a carriage return outside of quotes, which readers understand "
                    "differently: write line ends as \\n or \\r\\n, and texts with line breaks in quotes"
                )
            self._row.spans.append((self._start, stop))
            if tab < 0:
                return True
            self._start = self._at = tab + 1


def closing_quote(content: bytes | bytearray, at: int) -> int:
    """The position of the next quote that is not doubled; -1 where there is none."""
    close = content.find(b'"', at)
    while close >= 0 and content.startswith(b'"', close + 1):
        close = content.find(b'"', close + 2)
    return close


def unquoted(raw: bytes) -> bytes:
    """What a field says."""
    if not raw.startswith(b'"'):
        return raw
    close = closing_quote(raw, 1)
    return raw[1:close].replace(b'""', b'"') + raw[close + 1 :]


def split_row(content: bytes, where: str) -> list[bytes]:
    """The fields of one whole row. Raises DataError where it is none: the file changed since it was read."""
    row = Row(0, 0)
    if not _Scan(row, where).add(content):
        raise DataError(f"{where}: no whole row any more: the file changed while it was in use")
    return [unquoted(row.raw(column)) for column in range(len(row.spans))]
