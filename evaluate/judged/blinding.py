"""Which answers a rating page shows, without their models: tokens in place of names, in random order."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from prismcap.evaluate.judged.evaluation import Evaluation
from prismcap.evaluate.judged.protocols._contract import JudgedItem

_BLINDING_VERSION = 1  # raise it when tokens or orders change


@dataclass(frozen=True)
class BlindAnswer:
    """One text to be rated; equal answers of several models are one. token: what a page calls it."""

    token: str
    text: str
    models: tuple[str, ...]


def page_id(evaluation: Evaluation) -> str:
    """A hash of all that is rated: ratings of another page are told by it."""
    shown = [
        [
            item.id,
            item.question,
            item.image,
            {name: texts[item.id] for name, texts in evaluation.answers.items()},
        ]
        for item in evaluation.protocol.items
    ]
    return _hash([_BLINDING_VERSION, evaluation.config.seed, shown], 16)


def blinded(evaluation: Evaluation) -> Iterator[tuple[JudgedItem, list[BlindAnswer]]]:
    """Every question in the file's order with its answers, in an order drawn from the seed and its id."""
    page = page_id(evaluation)
    for item in evaluation.protocol.items:
        models: dict[str, list[str]] = {}
        for model, texts in evaluation.answers.items():
            models.setdefault(texts[item.id], []).append(model)
        answers = [
            BlindAnswer(_hash([page, item.id, text], 6), text, tuple(of)) for text, of in models.items()
        ]
        random.Random(f"{evaluation.config.seed} {item.id}").shuffle(answers)
        yield item, answers


def _hash(value: object, num_bytes: int) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=num_bytes).hexdigest()
