"""How each level of each axis did: means over seeds and items, and what the level sets."""

from __future__ import annotations

from collections.abc import Sequence

from prismcap.evaluate.ablation.factors import Factor, cells_of, factors
from prismcap.evaluate.ablation.matching import averaged, estimate_of, has_items, is_share, mean_of
from prismcap.evaluate.ablation.outcomes import Outcomes
from prismcap.evaluate.ablation.read import Ablation, Cell
from prismcap.evaluate.ablation.sentences import axis_sentence
from prismcap.evaluate.report.read import Record


def levels_of(ablation: Ablation) -> list[Record]:
    """A record per axis, level and figure: the mean over seeds and items with its interval, and by seed."""
    return [
        _level(ablation, factor, level, figure)
        for figure in ablation.figures
        for factor in factors(ablation)
        for level in factor.levels
    ]


def _level(ablation: Ablation, factor: Factor, level: str, figure: str) -> Record:
    planned = cells_of(ablation.cells, factor, level)
    cells = [cell for cell in planned if cell.state == "done"]
    measured = [cell for cell in cells if has_items(cell, figure)]
    share = is_share(ablation.cells, figure)
    groups: dict[int, list[Outcomes]] = {}
    for cell in measured:
        groups.setdefault(cell.seed, []).append(cell.measured.outcomes[figure])
    by_seed = {seed: averaged(outcomes) for seed, outcomes in groups.items()}
    by_seed = {seed: items for seed, items in by_seed.items() if items}
    estimate = estimate_of(list(by_seed.values()), (0.0, 1.0) if share else None) if by_seed else None
    hours = [cell.cost.device_hours for cell in cells if cell.cost.device_hours is not None]
    tokens = [cell.cost.tokens for cell in cells if cell.cost.tokens is not None]
    return {
        "axis": factor.name,
        "level": level,
        "figure": figure,
        "value": None if estimate is None else round(estimate.mean, 6),
        "low": None if estimate is None else round(estimate.low, 6),
        "high": None if estimate is None else round(estimate.high, 6),
        "n_items": None if estimate is None else estimate.n_items,
        "share": share,
        "by_seed": {str(seed): round(mean_of(items), 6) for seed, items in by_seed.items()},
        "cells": [cell.id for cell in measured],
        "cells_without": len(planned) - len(measured),
        "device_hours": round(sum(hours) / len(hours), 8) if hours else None,
        "tokens": round(sum(tokens) / len(tokens)) if tokens else None,
    }


def axes_of(ablation: Ablation, effects: Sequence[Record]) -> list[Record]:
    """A record per axis: its question, one sentence on the figure that decides, and per level the keys that
    it sets and the cells in which nothing else is changed."""
    records = []
    for factor in factors(ablation):
        plain = {level: _plain_cells(ablation, factor, level) for level in factor.levels}
        own = [
            effect
            for effect in effects
            if effect["axis"] == factor.name and effect["figure"] == ablation.figures[0]
        ]
        records.append(
            {
                "axis": factor.name,
                "question": factor.question,
                "levels": list(factor.levels),
                "cumulative": factor.cumulative,
                "settings": {level: cells[0].diff if cells else {} for level, cells in plain.items()},
                "cells": {level: [cell.id for cell in cells] for level, cells in plain.items()},
                "sentence": axis_sentence(factor.name, own),
            }
        )
    return records


def _plain_cells(ablation: Ablation, factor: Factor, level: str) -> list[Cell]:
    """The level's cells, a seed each, in which the other axes are as in the first cell."""
    first = factor.context_of(ablation.cells[0]) if ablation.cells else ()
    return [
        cell for cell in ablation.cells if factor.level_of(cell) == level and factor.context_of(cell) == first
    ]
