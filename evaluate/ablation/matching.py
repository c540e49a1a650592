"""Items of two cells and of several seeds brought together: differences by seed and item, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismcap.evaluate.ablation.factors import Pair
from prismcap.evaluate.ablation.outcomes import Outcomes
from prismcap.evaluate.ablation.read import Cell
from prismcap.evaluate.statistics.crossed import Estimate, crossed_mean, nested_mean
from prismcap.evaluate.statistics.resample import Floats

# seeds that share less of their items are taken to have items of their own
LEAST_SHARED_ITEMS = 0.5


@dataclass(frozen=True)
class Seed:
    """One seed's items: a value and a cluster each, by item id."""

    values: dict[str, float]
    clusters: dict[str, str]


def has_items(cell: Cell, figure: str) -> bool:
    return bool(cell.measured.outcomes.get(figure))


def difference(pairs: Sequence[Pair], figure: str) -> Seed:
    """level - against by item, averaged over the other axes' levels; of the items that all cells have."""
    sides = [(pair.cell.measured.outcomes[figure], pair.against.measured.outcomes[figure]) for pair in pairs]
    common = common_items([items for side in sides for items in side])
    return Seed(
        {id: sum(one[id][0] - other[id][0] for one, other in sides) / len(sides) for id in common},
        {id: sides[0][0][id][1] for id in common},
    )


def common_items(outcomes: Sequence[Mapping[str, Any]]) -> list[str]:
    return [id for id in outcomes[0] if all(id in other for other in outcomes[1:])]


def estimate_of(seeds: Sequence[Seed], bounds: tuple[float, float] | None) -> Estimate | None:
    """Over seeds and items; None where there is one of each, and nothing to tell a spread from."""
    common = common_items([seed.values for seed in seeds])
    fewest = min(len(seed.values) for seed in seeds)
    if len(common) < LEAST_SHARED_ITEMS * fewest:
        values = [np.asarray(list(seed.values.values())) for seed in seeds]
        return nested_mean(values, [list(seed.clusters.values()) for seed in seeds], bounds)
    matrix: Floats = np.asarray([[seed.values[id] for id in common] for seed in seeds])
    clusters = [seeds[0].clusters[id] for id in common]
    if len(seeds) == 1 and len(set(clusters)) == 1:
        return None
    return crossed_mean(matrix, clusters, bounds)


def mean_of(seed: Seed) -> float:
    return sum(seed.values.values()) / len(seed.values)


def is_share(cells: Sequence[Cell], figure: str) -> bool:
    """Whether the figure is one in 0..1, by the first cell that has it."""
    known = [cell.measured.figures[figure].share for cell in cells if figure in cell.measured.figures]
    values = [value for cell in cells for value, _ in cell.measured.outcomes.get(figure, {}).values()]
    return bool(known) and known[0] and all(0 <= value <= 1 for value in values)


def averaged(outcomes: Sequence[Outcomes]) -> Seed:
    common = common_items(outcomes)
    return Seed(
        {id: sum(items[id][0] for items in outcomes) / len(outcomes) for id in common},
        {id: outcomes[0][id][1] for id in common},
    )
