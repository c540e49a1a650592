"""Texts of a file together with what other files know of their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismcap.configs.errors import DataError
from prismcap.evaluate.metrics._contract import CaptionItem, Need
from prismcap.evaluate.offline.questions import Asked, Questions, read_questions
from prismcap.evaluate.offline.rows import name_of
from prismcap.evaluate.offline.texts import Text, Texts, read_texts
from prismcap.evaluate.offline.truths import Truth, Truths, read_objects, read_references

if TYPE_CHECKING:
    from prismcap.data.image import FileImage

# which option gives what a metric needs
REMEDIES: dict[Need, str] = {
    "references": "Give right captions with --references FILE",
    "image": "Give the pictures' folder with --images DIR",
    "objects": "Give what is in each picture with --objects FILE",
    "statements": 'Give each picture\'s facts as `statements: ["…", …]` in the rows of --references FILE or '
    "--objects FILE (JSON lines)",
    "answer": "Give the questions with their `label` (yes or no) with --questions FILE",
    "graph": "Only scenes have it: name the metric in `evaluation.metrics` of a run's config, for "
    "`prismcap evaluate`",
}


@dataclass(frozen=True)
class Known:
    """The files beside the texts, read once. None: not given."""

    references: Truths | None = None
    objects: Truths | None = None
    questions: Questions | None = None
    images: Path | None = None

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """By option, path and checksum, and of how many pictures or questions; for the results."""
        found: dict[str, dict[str, Any]] = {}
        for option, truths in (("references", self.references), ("objects", self.objects)):
            if truths is not None:
                found[option] = {**file_as_dict(truths), "entries": len(truths.by_id)}
        if self.questions is not None:
            found["questions"] = {**file_as_dict(self.questions), "entries": len(self.questions.asked)}
        if self.images is not None:
            found["images"] = {"path": str(self.images)}
        return found


def file_as_dict(file: Texts | Truths | Questions) -> dict[str, str]:
    """Which file it was, for the results."""
    return {"path": str(file.path), "checksum": file.checksum}


def read_known(
    references: Path | None, objects: Path | None, questions: Path | None, images: Path | None
) -> Known:
    """Raises DataError as the readers, and for a folder of pictures that is none."""
    if images is not None and not images.is_dir():
        raise DataError(f"--images {images}: no such folder")
    return Known(
        references=read_references(references) if references else None,
        objects=read_objects(objects) if objects else None,
        questions=read_questions(questions) if questions else None,
        images=images,
    )


def read_items(path: Path, known: Known) -> tuple[Texts, list[CaptionItem]]:
    """The texts of a file, and the same with everything that is known of their pictures.

    A text's question is the one of its id, or in its place where texts have no ids. What is known of a
    picture is found by the text's id, or by the picture's file name, wherever it lies. Raises DataError as
    the readers, and where a file that is given lacks some of the texts: how many, and the first.
    """
    texts = read_texts(path)
    asked = _questions(texts, known.questions)
    references = _found(texts, asked, known.references, "references", lambda truth: bool(truth.references))
    objects = _found(texts, asked, known.objects, "objects", lambda truth: truth.objects is not None)
    names = [_picture(*of) for of in zip(texts.texts, asked, references, objects, strict=True)]
    pictures = _pictures(texts, names, known.images)
    return texts, [
        CaptionItem(
            id=question.id if question and texts.are_ordered else text.id,
            text=text.text,
            where=text.where,
            cluster=name or text.id,
            references=reference.references,
            image=picture,
            objects=thing.objects,
            statements=reference.statements or thing.statements,
            answer=question.answer if question else None,
            group=question.group if question else "",
        )
        for text, name, question, reference, thing, picture in zip(
            texts.texts, names, asked, references, objects, pictures, strict=True
        )
    ]


def _questions(texts: Texts, questions: Questions | None) -> list[Asked | None]:
    """The question of every text. Every question must have its text, and every text its question."""
    if questions is None:
        if texts.are_ordered:
            raise DataError(
                f"{texts.path}: its rows have no ids (POPE's form, {{question, answer}}). Give the file of "
                "the questions, in the same order, with --questions FILE"
            )
        return [None] * len(texts.texts)
    if texts.are_ordered:
        return list(_in_order(texts, questions))
    by_id = questions.by_id
    _complain(
        [text for text in texts.texts if text.id not in by_id],
        texts,
        f"are no questions of {questions.path}",
        "Give the file of the questions that were asked",
    )
    answered = {text.id for text in texts.texts}
    open_ = [question for question in questions.asked if question.id not in answered]
    if open_:
        raise DataError(
            f"{texts.path}: {len(open_)} of {len(questions.asked)} questions of {questions.path} have no "
            f"answer; the first: {open_[0].id!r} ({open_[0].where}). Answer them, or leave them out of the "
            "questions"
        )
    return [by_id[text.id] for text in texts.texts]


def _in_order(texts: Texts, questions: Questions) -> Sequence[Asked]:
    if len(texts.texts) != len(questions.asked):
        raise DataError(
            f"{texts.path}: {len(texts.texts)} answers without ids, and {questions.path} has "
            f"{len(questions.asked)} questions: their places do not fit"
        )
    for text, question in zip(texts.texts, questions.asked, strict=True):
        if text.question.strip() != question.text.strip():
            raise DataError(
                f"{text.where}, key 'question': {text.question!r}, and {question.where} asks "
                f"{question.text!r}: the files are not in the same order"
            )
    return questions.asked


def _found(
    texts: Texts,
    asked: Sequence[Asked | None],
    truths: Truths | None,
    what: str,
    has: Callable[[Truth], bool],
) -> list[Truth]:
    """What a file says of every text's picture; an empty truth where there is no file."""
    if truths is None:
        return [Truth()] * len(texts.texts)
    found: list[Truth] = []
    lacking = []
    for text, question in zip(texts.texts, asked, strict=True):
        truth = truths.find(_keys(text, question, truths.of_pictures))
        if truth is None or not (has(truth) or truth.statements):
            lacking.append(text)
        found.append(truth or Truth())
    _complain(
        lacking,
        texts,
        f"have no {what} in {truths.path}",
        "Ids or file names must meet; leave out the texts that cannot be measured",
    )
    return found


def _keys(text: Text, question: Asked | None, of_pictures: bool) -> list[str]:
    """What a text's picture may be called, the surest first. A question's id is none of a picture."""
    image = (question.image if question else "") or text.image
    keys = [] if question is not None and of_pictures else [text.id]
    return keys + ([image, name_of(image)] if image else [])


def _picture(text: Text, question: Asked | None, *truths: Truth) -> str:
    """The picture's file as it is said somewhere; "" where it is not."""
    said = (question.image if question else "", text.image, *(truth.image for truth in truths))
    return next(filter(None, said), "")


def _pictures(texts: Texts, names: Sequence[str], folder: Path | None) -> list[FileImage | None]:
    """The files below the folder. Raises DataError for those that are not there."""
    if folder is None:
        return [None] * len(names)
    from prismcap.data.image import FileImage  # it brings torch, which texts alone do not need

    pictures = [_inside(folder, name) for name in names]
    _complain(
        [text for text, picture in zip(texts.texts, pictures, strict=True) if picture is None],
        texts,
        f"have no picture in {folder}",
        "Their rows, their questions, or --references and --objects (COCO's file_name) must name the file, "
        "from that folder on",
    )
    return [FileImage(picture) for picture in pictures if picture is not None]


def _inside(folder: Path, name: str) -> Path | None:
    """The file as its name says, or straight in the folder; None where neither is there."""
    from prismcap.data.image import resolve_inside
    from prismcap.data.schema import SampleRejected

    for relative in (name, name_of(name)) if name else ():
        try:
            path = resolve_inside(folder, relative)
        except SampleRejected:
            continue  # a path of the machine that captioned: outside of this folder
        if path.is_file():
            return path
    return None


def _complain(lacking: Sequence[Text], texts: Texts, what: str, remedy: str) -> None:
    if lacking:
        first = lacking[0]
        raise DataError(
            f"{texts.path}: {len(lacking)} of {len(texts.texts)} texts {what}; the first: {first.id!r} "
            f"({first.where}). {remedy}"
        )
