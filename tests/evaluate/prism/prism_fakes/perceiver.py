"""Names the colour of a picture's first pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import prism_fakes
from prism_fakes.behaviour import Behaviour
from prismcap.configs.errors import DataError
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.perceivers._contract import PerceiverContext, PerceiveRequest

NAMES = {(255, 0, 0): "red", (0, 128, 0): "green", (0, 0, 255): "blue", (0, 0, 0): "black"}


class Options(Behaviour):
    blank: bool = False
    file: bool = False  # looks descriptions up by question


class Seeing:
    def __init__(self, options: Options, context: PerceiverContext) -> None:
        self.options = options
        self.context = context
        prism_fakes.built(self)

    @property
    def identity(self) -> str:
        return f"seeing {self.options.weights} {self.options.blank} {self.options.file}"

    @property
    def needs_pictures(self) -> bool:
        return not self.options.file

    def describe(self, requests: Sequence[PerceiveRequest]) -> Iterator[tuple[int, Answer]]:
        prism_fakes.loaded(self)
        texts, unreadable = [], {}
        for position, request in enumerate(requests):
            try:
                pixel = request.images[0].load().getpixel((0, 0))
            except DataError as error:
                unreadable[position] = failed(str(error))
                pixel = (0, 0, 0)
            text = "Nothing can be seen." if self.options.blank else f"It is all {NAMES[pixel]}."  # type: ignore[index]
            if self.options.file:
                text = str(request.reference)
            texts.append((f"{request.question_id} | {request.instruction}", text))
        for position, answer in self.options.answers(texts):
            yield position, unreadable.get(position, answer)


def build(options: Options, context: PerceiverContext) -> Seeing:
    return Seeing(options, context)
