"""What was asked: JSON lines {question_id, image, text, label}, as LLaVA and POPE keep them.

`label` (yes or no) is POPE's; `category` names the part of the questions that is reported by itself (random,
popular, adversarial), where one file holds several.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prismcap.configs.errors import DataError
from prismcap.evaluate.offline.rows import Row, check_once, read_json_file, shown

FORM = "rows of {question_id, image, text, label}"


@dataclass(frozen=True)
class Asked:
    """One question. answer: None where the row has no label."""

    id: str
    text: str
    image: str
    answer: Literal["yes", "no"] | None
    group: str
    where: str


@dataclass(frozen=True)
class Questions:
    path: Path
    checksum: str
    asked: tuple[Asked, ...]

    @property
    def by_id(self) -> dict[str, Asked]:
        return {question.id: question for question in self.asked}


def read_questions(path: Path) -> Questions:
    """Raises DataError naming file, row, key and value."""
    file = read_json_file(path, FORM)
    if file.whole is not None:
        raise DataError(f"{path}: COCO annotations; expected {FORM}")
    asked = tuple(_question(row) for row in file.rows)
    ids = ((question.where, "question_id", question.id) for question in asked)
    check_once(ids, "; each question needs its own")
    return Questions(path, file.checksum, asked)


def _question(row: Row) -> Asked:
    return Asked(
        id=row.id_of("question_id"),
        text=row.text_of("text"),
        image=row.optional_text_of("image"),
        answer=_label(row) if "label" in row.values else None,
        group=row.optional_text_of("category"),
        where=row.where,
    )


def _label(row: Row) -> Literal["yes", "no"]:
    label = row.text_of("label").strip().lower()
    if label == "yes":
        return "yes"
    if label == "no":
        return "no"
    raise DataError(f"{row.where}, key 'label': expected yes or no, found {shown(row.values['label'])}")
