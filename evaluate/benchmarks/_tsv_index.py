"""Where the rows of a VLMEvalKit TSV file lie, and what must be known of all of them before one is asked."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prismcap.data.schema import DataError
from prismcap.data.sources._rows import file_state, short
from prismcap.evaluate.benchmarks._tsv_image import is_list, pictures_of
from prismcap.evaluate.benchmarks._tsv_question import is_blank
from prismcap.evaluate.benchmarks._tsv_rows import Row, read_rows, split_row, unquoted

POINTER_CHARACTERS = 64  # VLMEvalKit's bound: a shorter `image` is the index of the row that has the picture
REQUIRED = ("index", "question", "answer")
Check = Callable[[Mapping[str, str], str], None]


@dataclass
class TsvIndex:
    """One entry a row, in the file's order. ids: `index`. row_of: position by id. places: four offsets in the
    file: of the row, of its `image` field, of that field's end and of the row's end. num_pictures: in the
    `image` field, 0 where it is empty; lists: whether it is a list. owner: the row whose field holds the
    pictures. picture_keys: equal for equal fields. content: a hash of the file."""

    path: Path
    columns: tuple[str, ...]
    state: str
    content: str = ""
    ids: list[str] = field(default_factory=list)
    row_of: dict[str, int] = field(default_factory=dict)
    places: array[int] = field(default_factory=lambda: array("q"))
    num_pictures: array[int] = field(default_factory=lambda: array("i"))
    lists: bytearray = field(default_factory=bytearray)
    owner: array[int] = field(default_factory=lambda: array("q"))
    picture_keys: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, position: int) -> str:
        """The row, for errors; counted from 1 behind the header."""
        return f"{self.path}, row {position + 1} (index {short(self.ids[position])})"

    def values(self, position: int) -> dict[str, str]:
        """column -> text of one row, but for `image`; no picture is read. Raises DataError."""
        start, picture, picture_end, end = self.places[4 * position : 4 * position + 4]
        if file_state(self.path) != self.state:
            raise DataError(f"{self.path}: the file changed while it was in use; run again")
        with self.path.open("rb") as stream:
            stream.seek(start)
            head = stream.read(picture - start)
            stream.seek(picture_end)
            tail = stream.read(end - picture_end)
        where = self.where(position)
        return _decoded(self.columns, split_row(head + tail, where), where)


def index_file(path: Path, check: Check) -> TsvIndex:
    """Read the file once. check: what else each row's columns must keep; gets values and the row for errors.

    Raises DataError naming file, row and column.
    """
    state = file_state(path)
    rows = read_rows(path)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}: empty: expected a header row and questions below it")
    index = TsvIndex(path, _columns(path, header), state)
    digest = hashlib.blake2b(bytes(header.content), digest_size=16)
    picture_column = index.columns.index("image") if "image" in index.columns else None
    pointers: dict[int, str] = {}
    for row in rows:
        _add(index, row, picture_column, pointers, digest.update, check)
    if not index.ids:
        raise DataError(f"{path}: a header without questions")
    for position, target in pointers.items():
        _point(index, position, target, pointers)
    index.content = digest.hexdigest()
    return index


def _columns(path: Path, header: Row) -> tuple[str, ...]:
    try:
        columns = tuple(unquoted(header.raw(i)).decode() for i in range(len(header.spans)))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the header is not UTF-8 text: {error}") from error
    missing = [column for column in REQUIRED if column not in columns]
    if "image" not in columns and "image_path" not in columns:
        missing.append("image (or image_path)")
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; there are {short(', '.join(columns))}. A VLMEvalKit "
            "TSV has index, question, answer, and image or image_path, in tab-separated columns"
        )
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} stands twice in the header")
    return columns


def _add(
    index: TsvIndex,
    row: Row,
    picture_column: int | None,
    pointers: dict[int, str],
    digest: Callable[[bytes], None],
    check: Check,
) -> None:
    where = f"{index.path}, row {row.number}"
    if len(row.spans) != len(index.columns):
        raise DataError(
            f"{where}: {len(row.spans)} fields, but the header has {len(index.columns)} columns: the file is "
            "cut short, or a tab or line break stands outside of quotes"
        )
    start, end = (0, 0) if picture_column is None else row.spans[picture_column]
    raw = bytes(memoryview(row.content)[start:end])
    head, tail = bytes(memoryview(row.content)[:start]), bytes(memoryview(row.content)[end:])
    picture = unquoted(raw)
    key = hashlib.blake2b(picture, digest_size=16).digest()
    for part in (head, key, tail):  # every byte of the file is hashed once
        digest(len(part).to_bytes(8, "little"))
        digest(part)
    fields = [unquoted(row.raw(i)) if i != picture_column else b"" for i in range(len(row.spans))]
    values = _decoded(index.columns, fields, where)
    position, own_id = len(index.ids), values["index"].strip()
    if is_blank(own_id):
        raise DataError(f"{where}, column 'index': empty. Give every row an index of its own")
    if own_id in index.row_of:
        raise DataError(
            f"{where}, column 'index': {own_id!r} is the index of row {index.row_of[own_id] + 1} too; "
            "each question needs its own"
        )
    index.row_of[own_id] = position
    index.ids.append(own_id)
    count = _num_pictures(picture, f"{index.where(position)}, column 'image'")
    if not count and is_blank(values.get("image_path")):
        raise DataError(f"{where}, columns image and image_path: no picture. Each question needs one")
    if count and len(picture) <= POINTER_CHARACTERS and not is_list(picture):
        pointers[position] = picture.decode(errors="replace").strip()
    offset = row.offset
    index.places.extend((offset, offset + start, offset + end, offset + len(row.content)))
    index.num_pictures.append(count)
    index.lists.append(is_list(picture))
    index.owner.append(position)
    index.picture_keys.append(int.from_bytes(key[:8], "little"))
    check(values, index.where(position))


def _num_pictures(picture: bytes, where: str) -> int:
    if is_list(picture):
        return len(pictures_of(picture, where))
    return 0 if picture.strip().lower() in (b"", b"nan") else 1


def _point(index: TsvIndex, position: int, target: str, pointers: Mapping[int, str]) -> None:
    """Make a row share the pictures of the row it points at."""
    where = f"{index.where(position)}, column 'image': {target!r}"
    found = index.row_of.get(target)
    if found is None:
        raise DataError(
            f"{where} is no row's index, and too short for a picture: texts of at most {POINTER_CHARACTERS} "
            "characters point at the row whose picture is meant"
        )
    if found == position:
        raise DataError(f"{where} points at its own row; put the picture here, or the index of its row")
    if not index.num_pictures[found] or found in pointers:
        raise DataError(
            f"{where} points at row {found + 1}, which holds no picture itself: point at the row that does"
        )
    index.owner[position] = found
    index.num_pictures[position] = index.num_pictures[found]
    index.picture_keys[position] = index.picture_keys[found]


def _decoded(columns: tuple[str, ...], fields: list[bytes], where: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for column, raw in zip(columns, fields, strict=True):
        if column == "image":
            continue
        try:
            values[column] = raw.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}, column {column!r}: not UTF-8 text: {error}") from error
    return values
