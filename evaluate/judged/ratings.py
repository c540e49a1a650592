"""Ratings that people gave on the page: read, unblinded, and scored as a judge's are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from prismcap.configs.errors import DataError, nearest
from prismcap.evaluate.judged.agreement import agreement
from prismcap.evaluate.judged.blinding import BlindAnswer, blinded, page_id
from prismcap.evaluate.judged.evaluation import Evaluation
from prismcap.evaluate.judged.figures import rater_agreement
from prismcap.evaluate.judged.files import read_json
from prismcap.evaluate.judged.grades import GRADE_FIGURE, GRADES, reading_of
from prismcap.evaluate.judged.protocols._contract import Reading
from prismcap.evaluate.judged.results import ITEMS, summarise, write_results
from prismcap.evaluate.judged.verdicts import graded

RATINGS = "ratings.json"
FORMAT = "prismcap ratings 1"
GRADE_LEVEL = "ordinal"
Answer = tuple[str, str]  # (model, question's id)


@dataclass(frozen=True)
class Rater:
    """One person's file. grades: by (question's id, token)."""

    name: str
    where: Path
    grades: Mapping[tuple[str, str], str]


def score_ratings(evaluation: Evaluation, files: Sequence[Path]) -> dict[str, Any]:
    """Read the files, write ratings.json into the run's folder, and return what it holds: as results.json,
    with the raters and their agreement, with each other and with the run's judge, if it gave grades too.

    Raises DataError naming file, place and value: of another page, of a rater who is there twice, of a grade
    that is none.
    """
    raters = _raters(evaluation, files)
    grades: dict[Answer, dict[str, Reading]] = {}
    for item, answers in blinded(evaluation):
        for answer in answers:
            of = {
                rater.name: reading_of(rater.grades[item.id, answer.token])
                for rater in raters
                if (item.id, answer.token) in rater.grades
            }
            for model in answer.models:
                grades[model, item.id] = of
    judgements = graded(evaluation, grades)
    results = summarise(evaluation, judgements, {"figure": GRADE_FIGURE})
    results["raters"] = {
        "names": {rater.name: len(rater.grades) for rater in raters},
        "together": rater_agreement(judgements, GRADE_LEVEL),
        "pairs": [
            {"a": a.name, "b": b.name, **_between(grades, a.name, b.name)} for a, b in combinations(raters, 2)
        ],
        "with_judge": _with_judge(evaluation, grades, raters),
    }
    write_results(evaluation.run_dir / RATINGS, results)
    return results


def _raters(evaluation: Evaluation, files: Sequence[Path]) -> list[Rater]:
    page = page_id(evaluation)
    shown = {item.id: {answer.token: answer for answer in answers} for item, answers in blinded(evaluation)}
    raters: dict[str, Rater] = {}
    for file in files:
        rater = _read(file, page, shown)
        if rater.name in raters:
            raise DataError(
                f"{file}: rater: {rater.name!r} has rated in {raters[rater.name].where} already. Give the "
                "later file of the two, or have one of them export under another name"
            )
        raters[rater.name] = rater
    return list(raters.values())


def _read(file: Path, page: str, shown: Mapping[str, Mapping[str, BlindAnswer]]) -> Rater:
    path, values = read_json(str(file), "RATINGS")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path}: no ratings (format: {FORMAT!r}). Give what the page's button Export saves")
    if values.get("page") != page:
        raise DataError(
            f"{path}: page: {values.get('page')!r} is not the page of this config ({page!r}): questions, "
            "answers or seed have changed since it was drawn. Give the config that drew it"
        )
    name = values.get("rater")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{path}: rater: a name is needed, found {name!r}")
    ratings = values.get("ratings")
    if not isinstance(ratings, list) or not ratings:
        raise DataError(f"{path}: ratings: expected a list of at least one rating, found {ratings!r}")
    grades: dict[tuple[str, str], str] = {}
    for number, rating in enumerate(ratings):
        where = f"{path}, ratings[{number}]"
        key, grade = _rating(rating, where, shown)
        if key in grades:
            raise DataError(f"{where}: question_id {key[0]!r}, answer {key[1]!r} is rated twice; keep one")
        grades[key] = grade
    return Rater(name.strip(), path, grades)


def _rating(
    rating: Any, where: str, shown: Mapping[str, Mapping[str, BlindAnswer]]
) -> tuple[tuple[str, str], str]:
    if not isinstance(rating, dict):
        raise DataError(f"{where}: expected {{question_id, answer, grade}}, found {rating!r}")
    identity, token, grade = str(rating.get("question_id")), str(rating.get("answer")), rating.get("grade")
    if identity not in shown:
        raise DataError(f"{where}: question_id: {identity!r} is on no page of this config")
    if token not in shown[identity]:
        raise DataError(f"{where}: answer: {token!r} is none of question {identity!r}")
    if grade not in GRADES:
        raise DataError(f"{where}: grade: {grade!r}.{nearest(str(grade), GRADES)}")
    return (identity, token), str(grade)


def _between(grades: Mapping[Answer, Mapping[str, Reading]], a: str, b: str) -> dict[str, Any]:
    """Agreement of two raters on what both have rated."""
    units = [(of[a], of[b]) for of in grades.values() if a in of and b in of]
    return _agreement(units)


def _agreement(units: Sequence[tuple[Reading, Reading]]) -> dict[str, Any]:
    return agreement(
        [[one.label for one in unit] for unit in units],
        [[one.rank for one in unit] for unit in units],
        GRADE_LEVEL,
    )


def _with_judge(
    evaluation: Evaluation, grades: Mapping[Answer, Mapping[str, Reading]], raters: Sequence[Rater]
) -> dict[str, Any]:
    """Rater -> agreement with the judge's first repeat; empty where no judge has given grades."""
    judged = _judged_grades(evaluation)
    if not judged:
        return {}
    return {
        rater.name: _agreement(
            [
                (of[rater.name], judged[key])
                for key, of in grades.items()
                if rater.name in of and key in judged
            ]
        )
        for rater in raters
    }


def _judged_grades(evaluation: Evaluation) -> dict[Answer, Reading]:
    """Of items.jsonl, where it is of these answers."""
    path = evaluation.run_dir / ITEMS
    if tuple(evaluation.protocol.labels) != tuple(GRADES) or not path.is_file():
        return {}
    found: dict[Answer, Reading] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts = evaluation.answers.get(row["model"], {})
        labels = [one["label"] for one in row["verdicts"] if one["label"] in GRADES]
        if labels and texts.get(row["id"]) == row["answer"]:
            found[row["model"], row["id"]] = reading_of(labels[0])
    return found
