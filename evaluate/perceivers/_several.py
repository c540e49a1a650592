"""One policy for questions with several pictures: each is described alone, then joined under its number.

`Image 1: …` matches the `<image 1>` of a question's text. (The original joins captions by `\\nimage {i}: …`,
and not in all of its code.) One picture gets no label. A picture that cannot be described fails its question:
a description of the rest would answer another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from pydantic import Field

from prismcap.configs.schema.base import Section
from prismcap.data.schema import ImageRef
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.perceivers._contract import PerceiveRequest
from prismcap.evaluate.scenes.controls import BlankImage

BLANK = BlankImage()


class PictureOptions(Section):
    """Which pictures are looked at. blank: a plain grey one in place of each, as a control."""

    picture: Literal["own", "blank"] = "own"
    max_pictures: int | None = Field(
        default=None, ge=1, description="a question with more pictures fails, and none of them is described"
    )


@dataclass(frozen=True)
class View:
    """One picture and what is asked about it. Equal views get one answer."""

    image: ImageRef
    instruction: str


DescribeViews = Callable[[Sequence[View]], Iterator[tuple[int, Answer]]]


@dataclass(frozen=True)
class ViewPerceiver:
    """A perceiver that looks at one picture at a time. find_identity: of the model behind it."""

    options: PictureOptions
    describe_views: DescribeViews
    find_identity: Callable[[], str]

    @cached_property
    def identity(self) -> str:
        return f"{self.find_identity()}, picture {self.options.picture}, at most {self.options.max_pictures}"

    @property
    def needs_pictures(self) -> bool:
        return self.options.picture == "own"

    def describe(self, requests: Sequence[PerceiveRequest]) -> Iterator[tuple[int, Answer]]:
        return describe_pictures(requests, self.options, self.describe_views)


def describe_pictures(
    requests: Sequence[PerceiveRequest], options: PictureOptions, describe_views: DescribeViews
) -> Iterator[tuple[int, Answer]]:
    """Perceiver.describe by way of `describe_views`, which answers every view once, in any order.

    A view that several requests share is described once. Its tokens stand in each of their answers, since
    each has its text; its time and retries only in the first.
    """
    needed_by: dict[View, list[int]] = {}
    views_of: dict[int, tuple[View, ...]] = {}
    for position, request in enumerate(requests):
        refusal = _refusal(request, options)
        if refusal is not None:
            yield position, failed(refusal)
            continue
        shown = (BLANK,) * len(request.images) if options.picture == "blank" else request.images
        views_of[position] = tuple(View(image, request.instruction) for image in shown)
        for view in dict.fromkeys(views_of[position]):
            needed_by.setdefault(view, []).append(position)
    missing = {position: len(set(views)) for position, views in views_of.items()}
    unfinished = {view: len(positions) for view, positions in needed_by.items()}
    answers: dict[View, Answer] = {}
    asked = list(needed_by)
    for number, answer in describe_views(asked):
        answers[asked[number]] = answer
        for position in needed_by.pop(asked[number]):
            missing[position] -= 1
            if missing[position] == 0:
                yield position, joined(_take(views_of.pop(position), answers, unfinished))


def _take(views: Sequence[View], answers: dict[View, Answer], unfinished: dict[View, int]) -> list[Answer]:
    """The answers of a request's views. Those that no other request waits for are dropped from `answers`:
    not all descriptions of a large benchmark are held at once."""
    taken = []
    for view in views:
        taken.append(answers[view])
        answers[view] = replace(answers[view], latency_s=0.0, retries=0)
    for view in dict.fromkeys(views):
        unfinished[view] -= 1
        if unfinished[view] == 0:
            del answers[view]
    return taken


def joined(answers: Sequence[Answer]) -> Answer:
    """The answer about all pictures; counts and times add up."""
    total = Answer(
        tokens_in=_sum([answer.tokens_in for answer in answers]),
        tokens_out=_sum([answer.tokens_out for answer in answers]),
        latency_s=sum(answer.latency_s for answer in answers),
        retries=sum(answer.retries for answer in answers),
    )
    several = len(answers) > 1
    for number, answer in enumerate(answers, start=1):
        if answer.status == "failed":
            at = f"picture {number} of {len(answers)}: " if several else ""
            return replace(total, status="failed", error=f"{at}{answer.error}")
    reasons = {answer.finish_reason for answer in answers}
    # the least complete of them: cut off, withheld, unknown
    reason = next((reason for reason in ("length", "content_filter", None) if reason in reasons), "stop")
    text = answers[0].text
    if several:
        text = "\n".join(f"Image {number}: {answer.text}" for number, answer in enumerate(answers, start=1))
    return replace(total, text=text, finish_reason=reason)


def _refusal(request: PerceiveRequest, options: PictureOptions) -> str | None:
    num = len(request.images)
    if num == 0:
        return f"{request.benchmark}, question {request.question_id}: it has no picture to describe"
    if options.max_pictures is not None and num > options.max_pictures:
        return (
            f"{request.benchmark}, question {request.question_id}: {num} pictures, max_pictures is "
            f"{options.max_pictures}"
        )
    return None


def _sum(counts: Sequence[int | None]) -> int | None:
    """None when one is not known: a part of the cost is not the cost."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
