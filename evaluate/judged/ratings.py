"""Ratings that people gave on the page: read, unblinded, and scored as a judge's are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from prismcap.configs.errors import DataError, nearest
from prismcap.evaluate.judged.agreement import agreement
from prismcap.evaluate.judged.blinding import BlindAnswer, blinded, page_id
from prismcap.evaluate.judged.evaluation import Evaluation
from prismcap.evaluate.judged.files import read_json
from prismcap.evaluate.judged.grades import GRADE_SCALE, GRADES, reading_of
from prismcap.evaluate.judged.protocols._contract import JudgedItem, Reading
from prismcap.evaluate.judged.results import ITEMS, summarise, write_results
from prismcap.evaluate.judged.verdicts import graded
from prismcap.evaluate.report.read import read_lines, require_keys

RATINGS = "ratings.json"
FORMAT = "prismcap ratings 1"
JUDGE = ""  # among raters, whose names are never empty
Answer = tuple[str, str]  # (question's id, token)
Shown = tuple[JudgedItem, list[BlindAnswer]]


@dataclass(frozen=True)
class Rater:
    """One person's file."""

    name: str
    where: Path
    grades: Mapping[Answer, str]


def score_ratings(evaluation: Evaluation, files: Sequence[Path]) -> dict[str, Any]:
    """Read the files, write ratings.json into the run's folder, and return what it holds: as results.json,
    with the raters and their agreement, with each other and with the run's judge, if it gave grades too.

    Raises DataError naming file, place and value: of another page, of a rater who is there twice, of a grade
    that is none.
    """
    shown = list(blinded(evaluation))
    raters = _raters(evaluation, files, shown)
    units: dict[Answer, dict[str, Reading]] = {}
    by_model: dict[tuple[str, str], dict[str, Reading]] = {}
    for item, answers in shown:
        for answer in answers:
            key = item.id, answer.token
            units[key] = {
                rater.name: reading_of(rater.grades[key]) for rater in raters if key in rater.grades
            }
            by_model.update({(model, item.id): units[key] for model in answer.models})
    results = summarise(evaluation, graded(evaluation, by_model), GRADE_SCALE)
    judged = {key: {**units[key], JUDGE: grade} for key, grade in _judged_grades(evaluation, shown).items()}
    results["raters"] = {
        "names": {rater.name: len(rater.grades) for rater in raters},
        "together": _agreement([list(of.values()) for of in units.values()]),
        "pairs": [
            {"a": a.name, "b": b.name, **_between(units, a.name, b.name)} for a, b in combinations(raters, 2)
        ],
        "with_judge": {rater.name: _between(judged, rater.name, JUDGE) for rater in raters if judged},
    }
    write_results(evaluation.run_dir / RATINGS, results)
    return results


def _raters(evaluation: Evaluation, files: Sequence[Path], shown: Sequence[Shown]) -> list[Rater]:
    page = page_id(evaluation)
    tokens = {item.id: {answer.token for answer in answers} for item, answers in shown}
    raters: dict[str, Rater] = {}
    for file in files:
        rater = _read(file, page, tokens)
        if rater.name in raters:
            raise DataError(
                f"{file}: rater: {rater.name!r} has rated in {raters[rater.name].where} already. Give the "
                "later file of the two, or have one of them export under another name"
            )
        raters[rater.name] = rater
    return list(raters.values())


def _read(file: Path, page: str, tokens: Mapping[str, Collection[str]]) -> Rater:
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
    grades: dict[Answer, str] = {}
    for number, rating in enumerate(ratings):
        where = f"{path}, ratings[{number}]"
        key, grade = _rating(rating, where, tokens)
        if key in grades:
            raise DataError(f"{where}: question_id {key[0]!r}, answer {key[1]!r} is rated twice; keep one")
        grades[key] = grade
    return Rater(name.strip(), path, grades)


def _rating(rating: Any, where: str, tokens: Mapping[str, Collection[str]]) -> tuple[Answer, str]:
    if not isinstance(rating, dict):
        raise DataError(f"{where}: expected {{question_id, answer, grade}}, found {rating!r}")
    identity, token, grade = str(rating.get("question_id")), str(rating.get("answer")), rating.get("grade")
    if identity not in tokens:
        raise DataError(f"{where}: question_id: {identity!r} is on no page of this config")
    if token not in tokens[identity]:
        raise DataError(f"{where}: answer: {token!r} is none of question {identity!r}")
    if grade not in GRADES:
        raise DataError(f"{where}: grade: {grade!r}.{nearest(str(grade), GRADES)}")
    return (identity, token), str(grade)


def _between(units: Mapping[Answer, Mapping[str, Reading]], a: str, b: str) -> dict[str, Any]:
    """Agreement of two raters on what both have rated."""
    return _agreement([[of[a], of[b]] for of in units.values() if a in of and b in of])


def _agreement(units: Sequence[Sequence[Reading]]) -> dict[str, Any]:
    labels = [[one.label for one in unit] for unit in units]
    return agreement(labels, [[one.rank for one in unit] for unit in units], GRADE_SCALE.level)


def _judged_grades(evaluation: Evaluation, shown: Sequence[Shown]) -> dict[Answer, Reading]:
    """The judge's first grades in items.jsonl, of answers that are still these; empty where it gave none.
    Raises DataError naming the line that is damaged."""
    path = evaluation.run_dir / ITEMS
    if evaluation.protocol.scale != GRADE_SCALE or not path.is_file():
        return {}
    tokens = {(item.id, answer.text): answer.token for item, answers in shown for answer in answers}
    rows = read_lines(path, "written by prismcap judge run")
    require_keys(rows, ("id", "answer", "verdicts"), f"{path}, line", ". Run prismcap judge run again.")
    found: dict[Answer, Reading] = {}
    for row in rows:
        token = tokens.get((row["id"], row["answer"]))
        labels = [one["label"] for one in row["verdicts"] if one["label"] in GRADES]
        if labels and token is not None:
            found[row["id"], token] = reading_of(labels[0])
    return found
