from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from prismcap.configs.errors import DataError
from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.reasoners._contract import ReasonRequest
from prismcap.evaluate.scoring.circular import circles_right
from prismcap.evaluate.scoring.judge import ReasonerJudge
from prismcap.evaluate.scoring.score import needs_judge, score_reply

OPTIONS = ("cat", "dog", "bird", "horse")


def ask(
    kind: Any = "choice", answer: str = "B", options: tuple[str, ...] = OPTIONS, **fields: Any
) -> Question:
    return Question(
        id="7", kind=kind, text="Which animal is it?", answer=answer, images=(), options=options, **fields
    )


class Scripted:
    """A reasoner that says the same to all, in reverse order, and counts."""

    identity = "scripted"

    def __init__(self, answer: Answer) -> None:
        self.answer_to_all = answer
        self.prompts: list[str] = []

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        self.prompts += [request.prompt for request in requests]
        for position in reversed(range(len(requests))):
            yield position, self.answer_to_all


def test_right_wrong_refused_and_unmatched() -> None:
    right, wrong = score_reply(ask(), "B"), score_reply(ask(), "The answer is C.")
    assert (right.right, right.refused, right.expected) == (True, False, 1.0)
    assert (wrong.right, wrong.extracted, wrong.expected) == (False, "C", 0.0)
    refused = score_reply(ask(), "I cannot tell.")
    assert (refused.right, refused.extracted, refused.how, refused.refused) == (False, None, "refused", True)
    assert refused.expected == 1 / 4
    unmatched = score_reply(ask(), "A or B")
    assert (unmatched.how, unmatched.refused, unmatched.expected) == ("unmatched", False, 0.0)


def test_a_refusal_is_worth_a_guess_among_the_answers_there_are() -> None:
    assert score_reply(ask(options=OPTIONS[:2]), "I cannot tell.").expected == 1 / 2
    assert score_reply(ask("yes_no", "no", ()), "I cannot tell.").expected == 1 / 2
    free = score_reply(ask("number", "4", ()), "I cannot tell how many of the 4 are cats.")
    assert (free.refused, free.right, free.expected) == (True, False, 0.0)
    assert score_reply(ask("number", "4", ()), "I cannot see them all, but I count 4.").right


def test_each_kind_has_its_rules() -> None:
    assert score_reply(ask("yes_no", "No", ()), "No, it is not.").right
    assert score_reply(
        ask("number", "0.6", (), rules={"answer_type": "float", "precision": "1.0"}), "0.63"
    ).right
    assert score_reply(ask("text", "12", ()), "12").right
    assert not score_reply(ask("text", "12", ()), "13").right
    assert score_reply(ask(answer="b"), "B").right


@pytest.mark.parametrize(
    "question", [ask(answer="E"), ask(answer=""), ask(options=()), ask("yes_no", "maybe", ())]
)
def test_an_answer_that_no_reply_could_have_is_an_error(question: Question) -> None:
    with pytest.raises(DataError, match="question 7: answer"):
        score_reply(question, "A")


def test_the_judge_maps_what_no_rule_matched() -> None:
    judge = ReasonerJudge(Scripted(Answer("(B)")))
    scored = score_reply(ask(), "Man's best friend.", judge)
    assert (scored.right, scored.extracted, scored.how) == (True, "B", "judge")


@pytest.mark.parametrize(
    "answer",
    [
        Answer("E"),
        Answer("NONE"),
        Answer("I would say B is meant, or perhaps D"),
        Answer("A and B"),
        Answer("<think>B"),
        Answer(""),
        failed("HTTP 500"),
    ],
)
def test_the_judge_counts_only_with_a_valid_letter(answer: Answer) -> None:
    scored = score_reply(ask(), "Man's best friend.", ReasonerJudge(Scripted(answer)))
    assert (scored.extracted, scored.how, scored.refused) == (None, "unmatched", False)


def test_the_judge_is_asked_about_nothing_that_a_rule_decides() -> None:
    reasoner = Scripted(Answer("A"))
    judge = ReasonerJudge(reasoner)
    for reply in ("B", "I cannot tell.", "", "<think>unfinished"):
        assert not needs_judge(ask(), reply)
        assert score_reply(ask(), reply, judge).how != "judge"
    assert not needs_judge(ask("yes_no", "no", ()), "Perhaps.")
    assert reasoner.prompts == []


def test_the_judge_never_sees_the_answer_or_the_thinking_and_is_asked_once() -> None:
    reasoner = Scripted(Answer("B"))
    judge = ReasonerJudge(reasoner)
    reply = "<think>secret {thoughts}</think>Man's {best} friend."
    judge.prefetch([(ask(), reply), (ask(answer="C"), reply), (ask(), "It neighs.")])
    assert len(reasoner.prompts) == 2  # the question's answer is no part of the prompt
    assert judge.choose(ask(), reply) == "B"
    assert len(reasoner.prompts) == 2
    assert "secret" not in reasoner.prompts[0]
    assert "Man's {best} friend." in reasoner.prompts[0]
    assert "scripted" in judge.identity


def test_a_circle_is_right_when_all_of_its_rotations_are() -> None:
    circles = ["x", "y", "x", "", "y", "x"]
    assert circles_right(circles, [True, True, True, False, False, True]) == {"x": True, "y": False}
    assert circles_right(circles, [False, True, True, True, True, True]) == {"x": False, "y": True}
    with pytest.raises(ValueError, match="zip"):
        circles_right(["x"], [])
