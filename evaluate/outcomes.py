"""outcomes.jsonl: what every held-out item adds to every figure, for paired comparisons between runs.

A line each: {figure: "<split>.<figure>", id, cluster, value}, of the item's own picture alone. cluster: the
picture's fingerprint. Items of two runs are the same where id and cluster are: with another seed, another
scene has the same id. value: 0 or 1 of a rate, else the item's own value of a caption metric; of one that is
no mean over items (BLEU, F1), what the item alone would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prismcap.evaluate.scenes.figures import Figure, Result, counted
from prismcap.evaluate.scenes.items import Item

Values = Mapping[str, Sequence[tuple[Item, float]]]  # figure -> (item, its value)


def outcomes_of(figures: Sequence[Figure], results: Sequence[Result], others: Values) -> list[dict[str, Any]]:
    """The lines of one split: of its rates, then of the other figures given."""
    lines: list[dict[str, Any]] = []
    pictures: dict[object, str] = {}
    for name, item, value in _values(figures, results, others):
        if item.image not in pictures:
            pictures[item.image] = item.image.fingerprint()
        lines.append(
            {
                "figure": f"{item.split}.{name}",
                "id": item.id,
                "cluster": pictures[item.image],
                "value": value,
            }
        )
    return lines


def _values(
    figures: Sequence[Figure], results: Sequence[Result], others: Values
) -> Iterator[tuple[str, Item, float]]:
    for figure in figures:
        for result in counted(figure, results, "none"):
            yield figure.name, result.item, float(result.flags[figure.flag])
    for name, values in others.items():
        for item, value in values:
            yield name, item, value
