"""Questions about plain pictures, each picture asked about twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from PIL import Image

from prismcap.configs.errors import DataError
from prismcap.configs.schema.base import Section
from prismcap.evaluate.benchmarks._contract import BenchmarkContext, Question

COLOURS = ("red", "green", "blue", "black")


class Options(Section):
    num_pictures: int = 6
    unreadable: tuple[int, ...] = ()
    version: str = ""
    same_ids: bool = False
    max_drawn: int | None = None


@dataclass(frozen=True)
class Plain:
    number: int
    readable: bool
    version: str

    def load(self) -> Image.Image:
        if not self.readable:
            raise DataError(f"picture {self.number}: cannot be decoded")
        return Image.new("RGB", (8, 8), COLOURS[self.number % 4])

    def fingerprint(self) -> str:
        if not self.readable:
            raise DataError(f"picture {self.number}: cannot be decoded")
        return hashlib.blake2b(f"{self.number} {self.version}".encode(), digest_size=16).hexdigest()


class Plains:
    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def checksum(self) -> str:
        return f"plain {self.options.model_dump_json()}"

    def __len__(self) -> int:
        return 2 * self.options.num_pictures

    def __getitem__(self, position: int, /) -> Question:
        if not 0 <= position < len(self):
            raise IndexError(position)
        number, which = divmod(position, 2)
        picture = Plain(number, number not in self.options.unreadable, self.options.version)
        colour = COLOURS[number % 4]
        return Question(
            id="0" if self.options.same_ids else str(position),
            kind="choice",
            text=("Which colour fills the picture?", "What does the whole picture look like?")[which],
            answer="ABCD"[number % 4],
            images=(picture,),
            options=COLOURS,
            cluster=str(number),
            categories={"category": ("colour", "look")[which]},
            reference=f"A picture that is {colour} all over.",
        )


def build(options: Options, context: BenchmarkContext) -> Plains:  # noqa: ARG001
    return Plains(options)
