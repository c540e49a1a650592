"""What a protocol of judged evaluation is: questions, what a judge is asked about an answer, how it is read.

A module of this folder has `class Options(Section)` and `build(options, context) -> Protocol`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol as TypingProtocol

from prismcap.evaluate.judged.agreement import Level

PLAIN_PART = "answer"  # the part's name where an answer is judged by one request


@dataclass(frozen=True)
class JudgedItem:
    """One question about one picture.

    id: unique, joined with the answers' question_id. aliases: other ids that answers may say instead.
    image: the picture's file name; questions about one picture are resampled together.
    where: file and row, for errors. groups: kind -> names, of the parts of the items that are reported.
    reference: the answer that a model's is held against, where there is one.
    context: the picture in words, for a judge that cannot see it.
    earlier: ids of the questions that were asked before it in the same conversation.
    """

    id: str
    question: str
    image: str
    where: str
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reference: str | None = None
    context: str = ""
    aliases: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One request about one answer. An answer's score is the mean over its parts."""

    name: str
    prompt: str


@dataclass(frozen=True)
class Reading:
    """What a reply says. A figure is 100 * (sum of gained) / (sum of possible) over the items.

    label: the verdict as it was given; two of a judge's repeats agree when it is the same.
    rank: its place on the protocol's scale, for Krippendorff's alpha.
    """

    gained: float
    possible: float
    label: str
    rank: float


@dataclass(frozen=True)
class Scale:
    """What verdicts are made of, and how they are reported.

    figure: what the figures are, in words. labels: verdicts whose shares are reported; empty where they are
    numbers. orders: (part that shows the reference first, part that shows it last), where two answers are
    compared; there `possible` is the reference's score.
    """

    figure: str
    level: Level
    labels: tuple[str, ...] = ()
    orders: tuple[str, str] | None = None


class Protocol(TypingProtocol):
    @property
    def items(self) -> Sequence[JudgedItem]: ...

    @property
    def prompt_version(self) -> str:
        """Changes with the prompts and with how replies are read. Part of the cache's key."""

    @property
    def published(self) -> tuple[int, int] | None:
        """(questions, pictures) of the published set; None where it has no fixed size."""

    @property
    def scale(self) -> Scale: ...

    def parts(self, item: JudgedItem, answers: Mapping[str, str]) -> list[Part]:
        """The requests about one model's answer; answers: of this model, by question id."""

    def read(self, part: str, reply: str) -> Reading | None:
        """None: the reply is no verdict. It is counted, and never scored."""


@dataclass(frozen=True)
class ProtocolContext:
    """What every protocol is built with. has_judge: whether a model judges. where: key path, for errors."""

    has_judge: bool = True
    where: str = "protocol"
