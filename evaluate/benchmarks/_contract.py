"""What a benchmark is: questions with pictures that are read when they are asked for.

A module of this folder has `class Options(Section)` and `build(options, context) -> Benchmark`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from prismcap.data.schema import ImageRef  # with torch, which a run whose answers are known does not need


LETTERS = tuple(ascii_uppercase)  # of options, in their order
QuestionKind = Literal["choice", "yes_no", "number", "text"]


@dataclass(frozen=True)
class Question:
    """One question. Nothing of a picture is decoded to make one.

    id: unique in its benchmark, the row's index as text. text: with the file's own `<image k>` marks.
    options: in the order of their letters A, B, …; empty where the answer is free.
    answer: the right option's letter for `choice`, `yes` or `no` for `yes_no`, else the answer itself.
    cluster: equal for questions about the same pictures: intervals resample clusters, not questions.
    circle: equal for the rotations of one question under circular evaluation; "" where there are none.
    categories: column -> value, of the columns that group questions (category, l2-category, split).
    rules: what scoring of free answers needs (MathVista: question_type, answer_type, precision, unit).
    reference: a description of the pictures that is known to be right, where the benchmark has one.
    """

    id: str
    kind: QuestionKind
    text: str
    answer: str
    images: tuple[ImageRef, ...]
    options: tuple[str, ...] = ()
    hint: str = ""
    cluster: str = ""
    circle: str = ""
    categories: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None


class Benchmark(Protocol):
    """Questions by position, read lazily: `len` and one question cost no more than that question's row."""

    @property
    def checksum(self) -> str:
        """Of everything that questions and answers come from."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Question:
        """Raises DataError naming file, row and column."""


@dataclass(frozen=True)
class BenchmarkContext:
    """What every benchmark is built with. seed: of the Prism config."""

    name: str
    seed: int
    max_image_pixels: int
