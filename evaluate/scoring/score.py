"""Whether a reply is right: by the question's kind, with refusals told from wrong answers."""

from __future__ import annotations

from dataclasses import dataclass

from prismcap.configs.errors import DataError
from prismcap.evaluate.benchmarks._contract import LETTERS, Question
from prismcap.evaluate.scoring.choice import MAX_OPTIONS, extract_choice
from prismcap.evaluate.scoring.conclusions import Extraction
from prismcap.evaluate.scoring.judge import Judge
from prismcap.evaluate.scoring.numbers import free_rules, score_free
from prismcap.evaluate.scoring.refusal import after_refusals, is_refusal
from prismcap.evaluate.scoring.replies import plain, visible
from prismcap.evaluate.scoring.yes_no import NO, YES, extract_yes_no

SCORING_VERSION = 1  # raise it whenever a rule changes: scores of another version are not comparable
REFUSED, BY_JUDGE, UNMATCHED = "refused", "judge", "unmatched"


@dataclass(frozen=True)
class Scored:
    """One reply, scored.

    right: a refusal is wrong. extracted: a letter, `yes` or `no`, or the free answer in one spelling; None
    where nothing was. how: the rule that extracted it, `judge`, `refused` or `unmatched`. refused: the reply
    says that it cannot tell. expected: as `right`, but 1/k for a refusal among k options (2 for yes or no;
    0 for free answers). Leaving out what is refused gives the third policy.
    """

    right: bool
    extracted: str | None
    how: str
    refused: bool
    expected: float


def score_reply(question: Question, reply: str, judge: Judge | None = None) -> Scored:
    """judge: asked only about replies to choice questions that no rule matched and that refuse nothing.

    Raises DataError naming the question where its answer cannot be one.
    """
    if question.kind == "choice":
        return _choice(question, reply, judge)
    if question.kind == "yes_no":
        answer = question.answer.strip().lower()
        if answer not in (YES, NO):
            raise DataError(
                f"question {question.id}: answer {question.answer!r} of a yes_no question: yes or no"
            )
        return _scored(extract_yes_no(reply, question.text), answer, reply, num_answers=2)
    return _free(question, reply)


def needs_judge(question: Question, reply: str) -> bool:
    """Whether score_reply would ask a judge: to ask one about many replies at once."""
    if question.kind != "choice" or not visible(reply):
        return False
    found = extract_choice(reply, question.options)
    return found.value is None and (found.concluded or not is_refusal(reply))


def _choice(question: Question, reply: str, judge: Judge | None) -> Scored:
    num_options = len(question.options)
    answer = question.answer.strip().upper()
    letters = LETTERS[:num_options]
    if not 1 <= num_options <= MAX_OPTIONS or answer not in letters:
        raise DataError(
            f"question {question.id}: answer {question.answer!r} among {num_options} options: a choice "
            f"question has 1 to {MAX_OPTIONS} options and one of their letters as answer"
        )
    found = extract_choice(reply, question.options)
    if found.value is None and judge is not None and needs_judge(question, reply):
        letter = judge.choose(question, reply)
        if letter in letters:
            found = Extraction(letter, BY_JUDGE, concluded=True)
    return _scored(found, answer, reply, num_options)


def _scored(found: Extraction, answer: str, reply: str, num_answers: int) -> Scored:
    if found.value is not None:
        right = found.value == answer
        return Scored(right, found.value, found.how, refused=False, expected=float(right))
    if not found.concluded and is_refusal(reply):
        return Scored(False, None, REFUSED, refused=True, expected=1 / num_answers)
    return Scored(False, None, UNMATCHED, refused=False, expected=0.0)


def _free(question: Question, reply: str) -> Scored:
    given = question.rules if question.kind == "number" else {**question.rules, "answer_type": "text"}
    rules = free_rules(given, question.answer, question.id)
    scored = score_free(reply, question.answer, rules)
    if scored.how not in ("boxed", "answer_form", "conclusion") and is_refusal(reply):
        kept = after_refusals(plain(visible(reply)))
        scored = score_free(kept, question.answer, rules)
        if scored.extracted is None:
            return Scored(False, None, REFUSED, refused=True, expected=0.0)
    return Scored(scored.right, scored.extracted, scored.how, refused=False, expected=float(scored.right))
