"""Questions with several pictures: one policy, whatever describes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from shown import PICTURES, Broken, ask

from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.perceivers._several import (
    BLANK,
    PictureOptions,
    View,
    ViewPerceiver,
    describe_pictures,
    joined,
)

RED, GREEN, BLUE = PICTURES[:3]


class Describer:
    """Says what it was shown and asked, in the given order; `asked` are the views it got."""

    def __init__(self, backwards: bool = False) -> None:
        self.asked: list[View] = []
        self.backwards = backwards

    def __call__(self, views: Sequence[View]) -> Iterator[tuple[int, Answer]]:
        self.asked += views
        order = range(len(views))
        for position in reversed(order) if self.backwards else order:
            view = views[position]
            if isinstance(view.image, Broken):
                yield position, failed("broken.jpg: not a readable picture", latency_s=0.5)
                continue
            name = "blank" if view.image == BLANK else view.image.fingerprint()
            text = f"{name}, {view.instruction}"
            yield (
                position,
                Answer(text, finish_reason="stop", tokens_in=10, tokens_out=3, latency_s=2, retries=1),
            )


def texts(answers: Iterator[tuple[int, Answer]]) -> dict[int, str | None]:
    return {position: answer.text or answer.error for position, answer in answers}


def test_one_picture_has_no_label_and_several_are_numbered_in_the_questions_order() -> None:
    requests = [ask(BLUE), ask(GREEN, RED, BLUE)]
    for backwards in (False, True):
        answers = dict(describe_pictures(requests, PictureOptions(), Describer(backwards)))
        blue = f"{BLUE.fingerprint()}, Describe it."
        assert answers[0].text == blue
        lines = answers[1].text.splitlines()
        assert lines == [
            f"Image 1: {GREEN.fingerprint()}, Describe it.",
            f"Image 2: {RED.fingerprint()}, Describe it.",
            f"Image 3: {blue}",
        ]
        assert (answers[1].tokens_in, answers[1].tokens_out) == (30, 9)


def test_a_view_is_described_once_and_its_time_counted_once() -> None:
    describer = Describer()
    requests = [ask(RED), ask(RED, id="1"), ask(RED, RED, GREEN), ask(RED, instruction="Count.")]
    answers = dict(describe_pictures(requests, PictureOptions(), describer))
    assert describer.asked == [View(RED, "Describe it."), View(GREEN, "Describe it."), View(RED, "Count.")]
    assert sum(answer.latency_s for answer in answers.values()) == 3 * 2
    assert sum(answer.retries for answer in answers.values()) == 3
    assert answers[0].text == answers[1].text and answers[2].text.count("Image ") == 3
    assert answers[2].tokens_out == 9, "its own text's length, however it was had"


def test_an_answer_comes_as_soon_as_its_pictures_are_described() -> None:
    described: list[int] = []

    def slow(views: Sequence[View]) -> Iterator[tuple[int, Answer]]:
        for position, view in enumerate(views):
            described.append(position)
            yield position, Answer(view.instruction)

    answers = describe_pictures([ask(RED), ask(GREEN), ask(BLUE)], PictureOptions(), slow)
    assert next(answers)[0] == 0 and described == [0]
    assert next(answers)[0] == 1 and described == [0, 1]


def test_one_bad_picture_fails_its_question_and_no_other() -> None:
    requests = [ask(RED, Broken()), ask(RED), ask(), ask(Broken())]
    answers = dict(describe_pictures(requests, PictureOptions(), Describer()))
    assert answers[0].status == "failed"
    assert answers[0].error == "picture 2 of 2: broken.jpg: not a readable picture"
    assert answers[0].text == "", "half a description would answer another question"
    assert answers[1].status == "ok"
    assert answers[2].error == "shapes, question 0: it has no picture to describe"
    assert answers[3].error == "broken.jpg: not a readable picture"


def test_too_many_pictures_fail_before_any_is_described() -> None:
    describer = Describer()
    options = PictureOptions(max_pictures=2)
    answers = dict(describe_pictures([ask(RED, GREEN, BLUE), ask(RED, GREEN)], options, describer))
    assert answers[0].error == "shapes, question 0: 3 pictures, max_pictures is 2"
    assert answers[1].status == "ok" and len(describer.asked) == 2


def test_the_blank_control_shows_no_picture_of_a_question() -> None:
    describer = Describer()
    perceiver = ViewPerceiver(PictureOptions(picture="blank"), describer, lambda: "x")
    assert not perceiver.needs_pictures
    said = texts(perceiver.describe([ask(RED), ask(Broken()), ask(RED, GREEN)]))
    assert said[0] == said[1] == "blank, Describe it."
    assert said[2] == "Image 1: blank, Describe it.\nImage 2: blank, Describe it."
    assert describer.asked == [View(BLANK, "Describe it.")]
    own = ViewPerceiver(PictureOptions(), describer, lambda: "x")
    assert own.needs_pictures and own.identity != perceiver.identity


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (["stop", "stop"], "stop"),
        (["stop", "length"], "length"),
        (["content_filter", "stop"], "content_filter"),
        (["stop", None], None),
    ],
)
def test_the_least_complete_part_is_the_finish_reason(
    reasons: list[str | None], expected: str | None
) -> None:
    assert joined([Answer("a", finish_reason=reason) for reason in reasons]).finish_reason == expected


def test_a_count_that_is_not_known_is_no_count() -> None:
    both = joined([Answer("a", tokens_in=3, tokens_out=4), Answer("b", tokens_in=3)])
    assert (both.tokens_in, both.tokens_out) == (6, None)
