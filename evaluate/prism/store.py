"""What has been answered: append-only JSONL, one row per finished request, shared by processes.

A row's key hashes everything that decides its text, so a change asks again only for what depends on it. Rows
are written whole under a lock as each answer comes. A process that is killed leaves at most a line without
its end, which readers leave out and the next writer cuts off. Claims are byte locks of the kernel, one byte
per key in a file beside the rows: they go when their process does, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from prismcap.configs.errors import DataError
from prismcap.evaluate.clients.answer import Answer, Status

_OFFSETS = 1 << 62  # of the bytes that stand for keys: below the largest offset of a file


def request_key(stage: str, version: int, parts: Mapping[str, Any]) -> str:
    """A hash of the stage, its code's version and all that decides an answer's text (JSON values)."""
    text = json.dumps([stage, version, parts], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One row: the answer to the request that `key` stands for, first asked for the question `id`.

    at: when it was finished, UTC in ISO 8601. notes: further keys of the row.
    """

    key: str
    id: str
    answer: Answer
    at: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        answer = self.answer
        return {
            "key": self.key,
            "id": self.id,
            "status": answer.status,
            "text": answer.text if answer.status == "ok" else None,
            "error": answer.error,
            "finish_reason": answer.finish_reason,
            "tokens_in": answer.tokens_in,
            "tokens_out": answer.tokens_out,
            "latency_s": round(answer.latency_s, 4),
            "retries": answer.retries,
            "at": self.at,
            **self.notes,
        }


_ANSWER_KEYS = ("text", "status", "error", "finish_reason", "tokens_in", "tokens_out", "latency_s", "retries")
_KEYS = ("key", "id", "at", *_ANSWER_KEYS)


def now() -> str:
    """UTC in ISO 8601 with microseconds: texts that sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Store:
    """The rows of one stage and cell. Use as a context where requests are claimed.

    retry_before: failed rows from before this time (see `now`) count as not there, so that they are asked
    for again; none: a failure stands. Raises DataError naming file and line for a row that cannot be read.
    """

    def __init__(self, path: Path, retry_before: str | None = None) -> None:
        self.path = path
        self._retry_before = retry_before
        self._entries: dict[str, Entry] = {}
        self._read_bytes = 0
        self._read_lines = 0
        self._claims: int | None = None  # descriptor of the file whose bytes are locked
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """The newest row of every key."""
        return iter(self._entries.values())

    def get(self, key: str) -> Entry | None:
        """The newest row of a key, as of the last refresh."""
        return self._entries.get(key)

    def refresh(self) -> None:
        """Read what has been added since, by this process or another."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._read_lines += 1
            entry = self._parse(line)
            stale = (
                self._retry_before is not None
                and entry.answer.status == "failed"
                and entry.at < self._retry_before
            )
            if not stale:
                self._entries[entry.key] = entry
            else:
                self._entries.pop(entry.key, None)
        self._read_bytes += len(whole)

    def _parse(self, line: bytes) -> Entry:
        where = f"{self.path}, line {self._read_lines}"
        try:
            row = json.loads(line.decode("utf-8", "surrogatepass"))
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}). Delete the line: it is asked again") from error
        absent = [key for key in _KEYS if not isinstance(row, dict) or key not in row]
        if absent or row["status"] not in get_args(Status):
            wrong = f"without {', '.join(absent)}" if absent else f"of status {row['status']!r}"
            raise DataError(f"{where}: a row {wrong}. Delete the line: it is asked again")
        answer = Answer(**{key: row[key] for key in _ANSWER_KEYS if row[key] is not None})
        notes = {key: value for key, value in row.items() if key not in _KEYS}
        return Entry(row["key"], row["id"], answer, row["at"], notes)

    def append(
        self, key: str, question_id: str, answer: Answer, notes: Mapping[str, Any] | None = None
    ) -> Entry:
        """Write one row whole, and give up the claim to its key."""
        entry = Entry(key, question_id, answer, now(), notes or {})
        append_line(self.path, entry.as_row())
        self._entries[key] = entry
        self._release(key)
        return entry

    def __enter__(self) -> Store:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock_path = self.path.with_suffix(".lock")
        self._claims = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._claims is not None:
            os.close(self._claims)  # gives up every claim
            self._claims = None

    def claim(self, keys: Iterable[str], most: int) -> list[str]:
        """At most `most` of the keys that have no row and that no other process works on."""
        claimed: list[str] = []
        for key in keys:
            if len(claimed) == most:
                break
            if key not in self._entries and self._lock(key):
                claimed.append(key)
        # another process may have finished one between our last look and the lock
        self.refresh()
        for key in claimed:
            if key in self._entries:
                self._release(key)
        return [key for key in claimed if key not in self._entries]

    def _lock(self, key: str) -> bool:
        assert self._claims is not None, "claims are made within the store's context"
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def _release(self, key: str) -> None:
        if self._claims is not None:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _offset(key))


def _offset(key: str) -> int:
    return int(key, 16) % _OFFSETS


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON line at once, after cutting off what a killed process left half written."""
    data = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as descriptor:
        end = os.fstat(descriptor).st_size
        kept = _whole_lines(descriptor, end)
        if kept < end:
            os.ftruncate(descriptor, kept)
        written = os.pwrite(descriptor, data, kept)
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], kept + written)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _whole_lines(descriptor: int, end: int) -> int:
    """The length of the file up to the end of its last whole line."""
    block = 1 << 16
    while end > 0:
        start = max(0, end - block)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_pinned(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a JSONL file of the user's, each with `keys`; a last line without its end is left out.

    Raises DataError naming file and line.
    """
    rows = []
    if not path.is_file():
        return []
    data = path.read_bytes()
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                break
            raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
        absent = [key for key in keys if not isinstance(row, dict) or not isinstance(row.get(key), str)]
        if absent:
            raise DataError(f"{path}, line {number}: expected texts as {', '.join(keys)}; no {absent[0]!r}")
        rows.append(row)
    return rows
