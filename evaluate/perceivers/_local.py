"""What perceivers that run in this process share: the order of work, and what an answer is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import ImageRef
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.perceivers._contract import PerceiverContext
from prismcap.evaluate.perceivers._several import View
from prismcap.model.generate import Generated


def refuse_sampling(context: PerceiverContext) -> None:
    """Raises ConfigError: pictures are described greedily or with beams, so that a run can be repeated."""
    if context.decoding.temperature > 0:
        raise ConfigError(
            f"perceivers.{context.name}: a local model describes pictures without sampling, and "
            f"decoding.perceive.temperature is {context.decoding.temperature}: set it to 0"
        )


def answer_of(generated: Generated, tokens_in: int, latency_s: float) -> Answer:
    """A generated text as an answer; one without a word is a failure, as it is of an endpoint."""
    text = generated.text.strip()
    return Answer(
        text=text,
        status="ok" if text else "failed",
        error=None if text else "empty text: the model ended it before it wrote a word",
        finish_reason=generated.finish_reason,
        tokens_in=tokens_in,
        tokens_out=len(generated.token_ids),
        latency_s=latency_s,
    )


def chunks_by_picture(views: Sequence[View], size: int) -> Iterator[list[int]]:
    """Positions in chunks of `size`, those of one picture next to each other, pictures in order of their
    first view: a picture is in more than one chunk only where its own views are."""
    by_image: dict[ImageRef, list[int]] = {}
    for position, view in enumerate(views):
        by_image.setdefault(view.image, []).append(position)
    order = [position for positions in by_image.values() for position in positions]
    for start in range(0, len(order), size):
        yield order[start : start + size]
