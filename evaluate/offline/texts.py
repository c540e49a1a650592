"""A file of texts that some model wrote: captions or answers, in any of the forms that are about.

- `prismcap caption --jsonl`: {image, caption, prompt, model}; the id is the picture's path as it stands there
- COCO's results: [{image_id, caption}]
- LLaVA's answers: {question_id, text}
- POPE's answers: {question, answer} without an id: the row of the question file in the same place
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prismcap.configs.errors import DataError
from prismcap.evaluate.offline.rows import Row, check_once, read_json_file

ID_KEYS = ("id", "question_id", "image_id", "image")
TEXT_KEYS = ("caption", "text", "answer")
FORM = "rows of {image, caption}, {image_id, caption}, {question_id, text} or {question, answer}"


@dataclass(frozen=True)
class Text:
    """One text. id_key: the key that the id stood in, "" where the place in the file stands for it. image,
    question: where the row has them."""

    id: str
    id_key: str
    text: str
    where: str
    image: str = ""
    question: str = ""


@dataclass(frozen=True)
class Texts:
    path: Path
    checksum: str
    texts: tuple[Text, ...]

    @property
    def are_ordered(self) -> bool:
        """Whether places stand for ids."""
        return self.texts[0].id_key == ""


def read_texts(path: Path) -> Texts:
    """Raises DataError naming file, row, key and value: no rows, an id twice, no text."""
    file = read_json_file(path, FORM)
    if file.whole is not None:
        raise DataError(f"{path}: COCO annotations, not captions of a model; give it to --references")
    texts = tuple(_text(row, number) for number, row in enumerate(file.rows))
    check_once(_ids(texts), ". Keep one row for each id: measure one prompt, or one model, at a time")
    return Texts(path, file.checksum, texts)


def _ids(texts: Sequence[Text]) -> Iterator[tuple[str, str, str]]:
    """(where, key, id) of each. Raises DataError where only some of them have an id of their own."""
    for text in texts:
        if (text.id_key == "") != (texts[0].id_key == ""):
            raise DataError(f"{text.where}: has {_has_id(text)}, and the first row has {_has_id(texts[0])}")
        yield text.where, text.id_key, text.id


def _has_id(text: Text) -> str:
    return f"the id {text.id!r}" if text.id_key else "no id"


def _text(row: Row, number: int) -> Text:
    text_key = row.key_of(TEXT_KEYS)
    ordered = text_key == "answer" and "question" in row.values and row.values.keys().isdisjoint(ID_KEYS)
    id_key = "" if ordered else row.key_of(ID_KEYS)
    return Text(
        id=str(number) if ordered else row.id_of(id_key),
        id_key=id_key,
        text=row.text_of(text_key).strip(),
        where=row.where,
        image=row.optional_text_of("image"),
        question=row.text_of("question") if ordered else "",
    )
