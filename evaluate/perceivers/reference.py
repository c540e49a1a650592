"""The benchmark's own description, where it has one: what perfect perception would hand to a reasoner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prismcap.configs.schema.base import Section
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.perceivers._contract import PerceiverContext, PerceiveRequest


class Options(Section):
    pass


@dataclass(frozen=True)
class ReferencePerceiver:
    """Its texts are the requests': a cache must hash those too."""

    identity: str = "reference"
    needs_pictures: bool = False

    def describe(self, requests: Sequence[PerceiveRequest]) -> Iterator[tuple[int, Answer]]:
        for position, request in enumerate(requests):
            at = f"{request.benchmark}, question {request.question_id}"
            missing = failed(f"{at}: the benchmark has no reference description")
            yield position, Answer(text=request.reference) if request.reference else missing


def build(options: Options, context: PerceiverContext) -> ReferencePerceiver:  # noqa: ARG001
    return ReferencePerceiver()
