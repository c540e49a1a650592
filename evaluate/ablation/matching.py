"""Items of two cells and of several seeds brought together: differences by seed and item, and their mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismcap.evaluate.ablation.factors import Pair
from prismcap.evaluate.ablation.outcomes import Item, Outcomes
from prismcap.evaluate.ablation.read import Cell
from prismcap.evaluate.statistics.crossed import Estimate, crossed_mean, nested_mean
from prismcap.evaluate.statistics.resample import Floats

# seeds that share less of their items are taken to have items of their own
LEAST_SHARED_ITEMS = 0.5


def has_items(cell: Cell, figure: str) -> bool:
    return bool(cell.measured.outcomes.get(figure))


def difference(pairs: Sequence[Pair], figure: str) -> Outcomes:
    """level - against by item, averaged over the other axes' levels; of the items that all cells have."""
    sides = [(pair.cell.measured.outcomes[figure], pair.against.measured.outcomes[figure]) for pair in pairs]
    common = common_items([items for side in sides for items in side])
    return {item: sum(one[item] - other[item] for one, other in sides) / len(sides) for item in common}


def averaged(outcomes: Sequence[Outcomes]) -> Outcomes:
    return {item: sum(values[item] for values in outcomes) / len(outcomes) for item in common_items(outcomes)}


def common_items(outcomes: Sequence[Outcomes]) -> list[Item]:
    return [item for item in outcomes[0] if all(item in other for other in outcomes[1:])]


def estimate_of(seeds: Sequence[Outcomes], bounds: tuple[float, float] | None) -> Estimate | None:
    """Over seeds and items; None where there is one of each, and nothing to tell a spread from."""
    common = common_items(seeds)
    if len(common) < LEAST_SHARED_ITEMS * min(len(items) for items in seeds):
        values = [np.asarray(list(items.values())) for items in seeds]
        return nested_mean(values, [[cluster for _, cluster in items] for items in seeds], bounds)
    matrix: Floats = np.asarray([[items[item] for item in common] for items in seeds])
    clusters = [cluster for _, cluster in common]
    if len(seeds) == 1 and len(set(clusters)) == 1:
        return None
    return crossed_mean(matrix, clusters, bounds)


def mean_of(items: Outcomes) -> float:
    return sum(items.values()) / len(items)


def is_share(cells: Sequence[Cell], figure: str) -> bool:
    """Whether the figure is one in 0..1, by the first cell that has it."""
    known = [cell.measured.figures[figure].share for cell in cells if figure in cell.measured.figures]
    values = [value for cell in cells for value in cell.measured.outcomes.get(figure, {}).values()]
    return bool(known) and known[0] and all(0 <= value <= 1 for value in values)
