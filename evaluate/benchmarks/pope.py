"""POPE: is there a … in the picture? JSON lines `{question_id, image, text, label}`, a file for each setting.

Source: arXiv 2305.10355. The settings differ in which absent objects are asked for.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.data.image import FileImage, resolve_inside
from prismcap.data.schema import DataError, SampleRejected
from prismcap.data.sources._rows import JsonRows, short
from prismcap.evaluate.benchmarks._contract import Benchmark, BenchmarkContext, Question
from prismcap.evaluate.benchmarks._selected import SelectedOptions, select

__all__ = ["Options", "build"]

Setting = Literal["random", "popular", "adversarial"]


class Options(SelectedOptions):
    """Which files, and where their pictures lie. Paths may start with `cache:`."""

    files: dict[Setting, str] = Field(min_length=1, description="setting -> JSON lines")
    image_root: str = Field(description="folder that the rows' `image` is relative to (COCO val2014)")


def build(options: Options, context: BenchmarkContext) -> Benchmark:
    """Raises DataError naming file, row and key; pictures are not opened yet."""
    benchmark = PopeBenchmark(options, context.max_image_pixels)
    return select(benchmark, benchmark.ids, options)


class PopeBenchmark:
    """The questions of all settings, one after another. Ids are `<setting>/<question_id>`."""

    def __init__(self, options: Options, max_pixels: int) -> None:
        self._root = resolve_path(options.image_root)
        self._max_pixels = max_pixels
        digest = hashlib.blake2b(digest_size=16)
        self._rows: list[tuple[Setting, JsonRows]] = []
        self._places: list[tuple[int, int]] = []
        self.ids: list[str] = []
        known: dict[str, str] = {}
        for number, (setting, name) in enumerate(options.files.items()):
            path = resolve_path(name)
            rows = JsonRows(path, "question_id", "{question_id, image, text, label}")
            digest.update(f"{setting} {_file_hash(path)}\n".encode())
            self._rows.append((setting, rows))
            for row in range(len(rows)):
                question = self._question(setting, rows, row)
                if question.id in known:
                    raise DataError(
                        f"{rows.where(row)}, key 'question_id': {question.id!r} is that of "
                        f"{known[question.id]} too; each question needs its own"
                    )
                known[question.id] = f"row {row}"
                self.ids.append(question.id)
                self._places.append((number, row))
        self.checksum = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int, /) -> Question:
        if not 0 <= position < len(self):
            raise IndexError(f"POPE: question {position} of {len(self)}")
        number, row = self._places[position]
        return self._question(*self._rows[number], row)

    def _question(self, setting: Setting, rows: JsonRows, index: int) -> Question:
        row, where = rows[index], rows.where(index)
        text, image = (_text(row, key, where) for key in ("text", "image"))
        answer = _text(row, "label", where).strip().lower()
        if answer not in ("yes", "no"):
            raise DataError(f"{where}, key 'label': expected yes or no, found {short(row['label'])}")
        if not isinstance(row.get("question_id"), int | str):
            raise DataError(f"{where}, key 'question_id': expected a number or a text")
        try:
            path = resolve_inside(self._root, image)
        except SampleRejected as error:
            raise SampleRejected(error.reason, f"{where}, key 'image': {error}") from error
        return Question(
            id=f"{setting}/{row['question_id']}",
            kind="yes_no",
            text=text,
            answer=answer,
            images=(FileImage(path, self._max_pixels),),
            cluster=image,
            categories={"setting": setting},
        )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}, key {key!r}: expected a text, found {short(value)}")
    return value


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
