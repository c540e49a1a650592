"""LLaVA-format JSON: an array of rows, or one row per line (JSONL).

A row is `{id, image, conversations: [{from: human|gpt, value}]}`. `id` may be `idx` or absent (then
the row number), `image` may be absent (text only), one path or several; `<image>` marks in the human
text say where the pictures stand. Rows of LCS-558K, CC595K, LLaVA-Instruct, mix665K, ALLaVA,
Evol-Instruct and ShareGPT4V have this shape.
Only the position of each row is kept in memory; a row is parsed when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.schema.base import Section
from prismcap.data.image import FileImage, resolve_inside
from prismcap.data.schema import DataError, ImagePart, Message, Part, Role, Sample, SampleRejected, TextPart
from prismcap.data.sources._contract import SourceContext

IMAGE_MARK = "<image>"
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\n"
_BLOCK_BYTES = 1 << 24


class Options(Section):
    """path: the JSON or JSONL file. image_root: folder that the rows' image paths are relative to
    (none: the file's own folder); pictures outside of it are refused. limit: only the first rows."""

    path: str
    image_root: str | None = None
    limit: int | None = Field(default=None, ge=1)


class LlavaJson:
    """Random access to the rows of one file. Raises DataError at once for a file that is no such JSON."""

    def __init__(self, path: Path, image_root: Path, limit: int | None, max_image_pixels: int) -> None:
        self.path = path
        self.image_root = image_root
        self.max_image_pixels = max_image_pixels
        # int64 [rows, 2]: offset and length in bytes; 16 bytes a row, where parsed rows take kilobytes
        self._places = _index_rows(path, limit)
        self._state = path.stat()

    def __len__(self) -> int:
        return len(self._places)

    def fingerprint(self) -> str:
        """See FileSource.fingerprint. Path, size, time of change, and the rows that are taken."""
        state, root = self._state, self.image_root.resolve()
        return f"{self.path.resolve()} {state.st_size} {state.st_mtime_ns} {len(self)} {root}"

    def __getitem__(self, index: int) -> Sample:
        """Row `index`, counted from 0. Raises SampleRejected naming file, row and key."""
        offset, length = (int(value) for value in self._places[index])
        # opened for each row: a file position shared with forked workers would be moved by all of them
        with self.path.open("rb") as stream:
            stream.seek(offset)
            raw = stream.read(length)
        where = f"{self.path}, row {index}"
        try:
            row = json.loads(raw)
        except ValueError as error:
            raise SampleRejected("row_malformed", f"{where}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise SampleRejected("row_malformed", f"{where}: expected an object, found {type(row).__name__}")
        images = _image_paths(row, where)
        messages = _messages(row, len(images), where)
        return Sample(
            id=str(row.get("id", row.get("idx", index))),
            images=tuple(self._image(value, where) for value in images),
            messages=messages,
            source=self.path.name,
        )

    def _image(self, value: str, where: str) -> FileImage:
        try:
            return FileImage(resolve_inside(self.image_root, value), self.max_image_pixels)
        except SampleRejected as error:
            raise SampleRejected(error.reason, f"{where}, key 'image': {error}") from error


def _image_paths(row: dict[str, Any], where: str) -> list[str]:
    value = row.get("image")
    values = [] if value is None else value if isinstance(value, list) else [value]
    for item in values:
        if not isinstance(item, str) or not item:
            message = f"{where}, key 'image': expected a path or a list of paths, found {_short(value)}"
            raise SampleRejected("row_malformed", message)
    return values


def _messages(row: dict[str, Any], num_images: int, where: str) -> tuple[Message, ...]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        found = _short(turns) if "conversations" in row else f"only the keys {sorted(map(str, row))}"
        raise SampleRejected(
            "no_conversations",
            f"{where}, key 'conversations': expected a list of turns {{from, value}}, found {found}",
        )
    parsed = [_turn(turn, f"{where}, key 'conversations.{i}'") for i, turn in enumerate(turns)]
    # some ShareGPT conversations open in the middle, with an answer: LLaVA leaves that answer out
    first = next((i for i, (role, _) in enumerate(parsed) if role != "system"), len(parsed))
    if first < len(parsed) and parsed[first][0] == "assistant":
        del parsed[first]
    return _place_images(parsed, num_images, where)


def _turn(turn: Any, where: str) -> tuple[Role, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise SampleRejected(
            "row_malformed", f"{where}: expected {{from, value}} with text, found {_short(turn)}"
        )
    role = ROLES.get(str(turn.get("from")))
    if role is None:
        message = f"{where}, key 'from': unknown role {_short(turn.get('from'))}; known: {', '.join(ROLES)}"
        raise SampleRejected("unknown_role", message)
    if role == "assistant" and not turn["value"].strip():
        raise SampleRejected("empty_answer", f"{where}, key 'value': the answer is empty: nothing to learn")
    try:
        turn["value"].encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell and no tokenizer takes
        raise SampleRejected("row_malformed", f"{where}, key 'value': not valid text: {error}") from error
    return role, turn["value"]


def _place_images(turns: list[tuple[Role, str]], num_images: int, where: str) -> tuple[Message, ...]:
    """Splits each user text at its `<image>` marks, once; the k-th mark is the k-th picture.

    Without any mark all pictures come before the first user text, as the field does.
    """
    num_marks = sum(text.count(IMAGE_MARK) for role, text in turns if role == "user")
    if num_marks not in (0, num_images):
        message = f"{where}: {num_marks} {IMAGE_MARK} marks in the human text for {num_images} pictures"
        raise SampleRejected("image_marks", message)
    in_front = num_images if num_marks == 0 else 0
    messages: list[Message] = []
    next_image = 0
    for role, text in turns:
        parts: list[Part] = []
        if role == "user":
            parts += [ImagePart(i) for i in range(in_front)]
            in_front = 0
            pieces = text.split(IMAGE_MARK)
            for i, piece in enumerate(pieces):
                if i > 0:
                    parts.append(ImagePart(next_image))
                    next_image += 1
                # the line breaks around a mark belong to the format; templates write their own
                words = piece if len(pieces) == 1 else piece.strip()
                parts += [TextPart(words)] if words else []
        else:
            parts.append(TextPart(text))
        messages.append(Message(role, tuple(parts), train=role == "assistant"))
    if in_front:
        raise SampleRejected(
            "image_marks", f"{where}: {num_images} pictures, but no human turn to show them in"
        )
    return tuple(messages)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _index_rows(path: Path, limit: int | None) -> np.ndarray:
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
        rows = _line_rows(path)
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


def _line_rows(path: Path) -> Iterator[tuple[int, int]]:
    """Non-empty lines. The first must be JSON, or the file is no JSONL; later ones are judged row by row."""
    offset = 0
    first = True
    with path.open("rb") as stream:
        for line in stream:
            start = len(_BOM) if offset == 0 and line.startswith(_BOM) else 0
            if line[start:].strip(_WHITE):
                if first:
                    _check_first_line(path, line[start:])
                    first = False
                yield offset + start, len(line) - start
            offset += len(line)


def _check_first_line(path: Path, line: bytes) -> None:
    try:
        row = json.loads(line)
    except ValueError as error:
        message = f"{path}: neither a JSON array of rows nor JSON lines: line 1: {error}"
        raise DataError(message) from error
    if "conversations" not in row and len(row) == 1:
        raise DataError(
            f"{path}: a single object with the key {next(iter(row))!r}, not LLaVA rows; "
            "expected an array, or lines, of {id, image, conversations}"
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


def build(options: Options, context: SourceContext) -> LlavaJson:
    """Raises DataError naming the file when it is missing or no LLaVA JSON."""
    path = resolve_path(options.path)
    root = resolve_path(options.image_root) if options.image_root is not None else path.parent
    return LlavaJson(path, root, options.limit, context.max_image_pixels)
