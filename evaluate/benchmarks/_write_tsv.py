"""Any benchmark as a VLMEvalKit TSV file, which `tsv` and other frameworks read."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from prismcap.configs.files import replace_file, sync_folder
from prismcap.data.schema import DataError, ImageRef
from prismcap.evaluate.benchmarks._contract import LETTERS, Benchmark, Question
from prismcap.evaluate.benchmarks._tsv_index import POINTER_CHARACTERS
from prismcap.evaluate.benchmarks._tsv_question import is_blank

_FREE = {"number": "float", "text": "text"}  # answer_type of free answers that have no rule of their own


def write_tsv(benchmark: Benchmark, path: Path) -> None:
    """Write every question with its pictures as PNG; pictures that occurred before as a pointer to their row.

    The file is there whole or not at all, and read by `tsv` again it asks the same questions; its categories
    must be named to it where they are not VLMEvalKit's. Of circular benchmarks the rotations are written as
    questions of their own. Raises DataError for what the format cannot say, and OSError.
    """
    columns = _columns(benchmark)
    replace_file(path, lambda file: _write(benchmark, columns, file, path))
    sync_folder(path.parent)


def _columns(benchmark: Benchmark) -> list[str]:
    """All columns that any question needs, in a fixed order."""
    num_options = 0
    groups: dict[str, None] = {}
    more: dict[str, None] = {}
    for position in range(len(benchmark)):
        question = benchmark[position]
        num_options = max(num_options, len(question.options))
        groups |= dict.fromkeys((*question.categories, *_rules(question)))
        more |= dict.fromkeys(_more(question))
    columns = ["index", "question", *LETTERS[:num_options], "answer", *groups, *more, "image"]
    if len(set(columns)) < len(columns):
        raise DataError(
            f"categories and rules {list(groups)} share names with columns of the format: {columns}"
        )
    return columns


def _rules(question: Question) -> dict[str, str]:
    rules = dict(question.rules)
    if question.kind in _FREE:
        rules.setdefault("answer_type", _FREE[question.kind])
    return rules


def _write(benchmark: Benchmark, columns: list[str], file: BinaryIO, path: Path) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    # all in quotes: otherwise a lone carriage return in a text would be left bare, and end the row
    writer = csv.DictWriter(
        text, columns, delimiter="\t", lineterminator="\n", restval="", quoting=csv.QUOTE_ALL
    )
    writer.writeheader()
    first_with: dict[tuple[str, ...], str] = {}
    for position in range(len(benchmark)):
        question = benchmark[position]
        pictures = tuple(image.fingerprint() for image in question.images)
        known = first_with.setdefault(pictures, question.id)
        image = known if known != question.id else _encoded(question.images)
        if len(known) > POINTER_CHARACTERS:
            image = _encoded(question.images)
        writer.writerow(_row(question, image, path))
    text.detach()


def _row(question: Question, image: str, path: Path) -> dict[str, str]:
    where = f"{path}, question {question.id!r}"
    options = dict(zip(LETTERS, question.options, strict=False))
    for name, value in {"question": question.text, "answer": question.answer, **options}.items():
        if is_blank(value):
            raise DataError(
                f"{where}, column {name!r}: {value!r} is read as an empty cell; give it another text"
            )
    if len(options) < len(question.options) or not question.images:
        raise DataError(f"{where}: the format holds at most 26 options, and at least one picture")
    return {
        "index": question.id,
        "question": question.text,
        **options,
        "answer": question.answer,
        **question.categories,
        **_rules(question),
        **_more(question),
        "image": image,
    }


def _more(question: Question) -> dict[str, str]:
    said = {"hint": question.hint, "reference": question.reference or ""}
    return {column: value for column, value in said.items() if value}


def _encoded(images: tuple[ImageRef, ...]) -> str:
    """One picture as base64, several as a list."""
    encoded = [base64.b64encode(_png(image.load())).decode() for image in images]
    return encoded[0] if len(encoded) == 1 else repr(encoded)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
