"""What the small columns of a VLMEvalKit TSV row say: which kind of question it is, and its answer."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from prismcap.data.schema import DataError
from prismcap.data.sources._rows import short
from prismcap.evaluate.benchmarks._contract import LETTERS, QuestionKind

RULE_COLUMNS = ("question_type", "answer_type", "precision", "unit")  # MathVista's
_NUMBERS = ("integer", "float")


@dataclass(frozen=True)
class Asked:
    """See Question, whose fields these are."""

    kind: QuestionKind
    text: str
    options: tuple[str, ...]
    answer: str
    rules: Mapping[str, str]


def is_blank(value: str | None) -> bool:
    """Whether a cell says nothing. `None` and `N/A` are texts that options really have."""
    return value is None or value.strip().lower() in ("", "nan")


def read_question(values: Mapping[str, str], where: str) -> Asked:
    """values: column -> text of one row. `where` (file and row) goes into errors. Raises DataError.

    A gap among the options closes: those behind it move up, and the answer's letter with them.
    """
    for column in ("question", "answer"):
        if is_blank(values.get(column)):
            raise DataError(f"{where}, column {column!r}: empty. A question that nobody can score is no use")
    answer = values["answer"].strip()
    rules = {column: values[column] for column in RULE_COLUMNS if not is_blank(values.get(column))}
    letters, options = _options(values, where)
    kind: QuestionKind
    if options:
        kind, answer = "choice", _letter(values, letters, options, where)
    elif rules.get("answer_type") in _NUMBERS:
        kind = "number"
        _check_number(answer, where)
    elif "answer_type" not in rules and answer.lower() in ("yes", "no"):
        kind, answer = "yes_no", answer.lower()
    else:
        kind = "text"
    return Asked(kind, values["question"], options, answer, rules)


def _options(values: Mapping[str, str], where: str) -> tuple[str, tuple[str, ...]]:
    """The file's own letters of the options that are there, and their texts."""
    letters = "".join(letter for letter in LETTERS if not is_blank(values.get(letter)))
    if letters or values.get("question_type") != "multi_choice":
        return _enough(letters, tuple(values[letter] for letter in letters), where)
    listed = values.get("choices", "")
    try:
        choices = ast.literal_eval(listed)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        message = f"{where}, column 'choices': {short(listed)} is no list of option texts"
        raise DataError(message) from error
    if not isinstance(choices, list) or not choices or len(choices) > len(LETTERS):
        raise DataError(f"{where}, column 'choices': expected a list of 2 to 26 texts, found {short(listed)}")
    return _enough("".join(LETTERS[: len(choices)]), tuple(str(choice) for choice in choices), where)


def _enough(letters: str, options: tuple[str, ...], where: str) -> tuple[str, tuple[str, ...]]:
    if len(options) == 1:
        raise DataError(f"{where}, column {letters!r}: the only option; a choice has two or more")
    return letters, options


def _letter(values: Mapping[str, str], letters: str, options: tuple[str, ...], where: str) -> str:
    """The answer's letter, counted over the options that are there."""
    column = "answer" if is_blank(values.get("answer_option")) else "answer_option"
    given = values[column].strip()
    if given.upper() in letters and len(given) == 1:
        return LETTERS[letters.index(given.upper())]
    if options.count(given) == 1:
        return LETTERS[options.index(given)]
    raise DataError(
        f"{where}, column {column!r}: {short(given)} is not among the options: expected one of "
        f"{', '.join(letters)}, or the text of exactly one option"
    )


def _check_number(answer: str, where: str) -> None:
    try:
        float(answer.replace(",", ""))
    except ValueError as error:
        raise DataError(
            f"{where}, column 'answer': {short(answer)} is no number, as answer_type says"
        ) from error
