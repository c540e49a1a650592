"""What each level of each axis changes: paired by seed and item, with an interval over both, corrected."""

from __future__ import annotations

from collections.abc import Sequence

from prismcap.evaluate.ablation.factors import Factor, Pair, factors, pairs_of
from prismcap.evaluate.ablation.matching import difference, estimate_of, has_items, is_share, mean_of
from prismcap.evaluate.ablation.read import Ablation, Cell
from prismcap.evaluate.ablation.sentences import effect_sentence, no_effect
from prismcap.evaluate.report.read import Record
from prismcap.evaluate.statistics.crossed import Estimate
from prismcap.evaluate.statistics.multiple import holm_by_family


def effects_of(ablation: Ablation) -> list[Record]:
    """A record per axis, level (but the first) and figure, as results.json keeps them.

    The family of Holm's correction is all effects of one figure. Numbers are None where no seed has both
    sides; `why_not` then says why. df is None where the error is that of the normal distribution.
    """
    records = [
        _effect(ablation, factor, level, figure)
        for figure in ablation.figures
        for factor in factors(ablation)
        for level in factor.levels[1:]
    ]
    tested = [record for record in records if record["p"] is not None]
    adjusted = holm_by_family(
        [str(record["figure"]) for record in tested], [float(record["p"]) for record in tested]
    )
    for record, p in zip(tested, adjusted, strict=True):
        record["p_holm"] = p
    for record in records:
        record["sentence"] = no_effect(record) if record["why_not"] else effect_sentence(record)
    return records


def _effect(ablation: Ablation, factor: Factor, level: str, figure: str) -> Record:
    planned = list(pairs_of(ablation.cells, factor, level))
    usable = [pair for pair in planned if has_items(pair.cell, figure) and has_items(pair.against, figure)]
    by_seed = {seed: difference(pairs, figure) for seed, pairs in _by_seed(usable).items()}
    by_seed = {seed: items for seed, items in by_seed.items() if items}
    share = is_share(ablation.cells, figure)
    estimate = estimate_of(list(by_seed.values()), (-1.0, 1.0) if share else None) if by_seed else None
    seeds = list(dict.fromkeys(pair.seed for pair in planned))
    return {
        "axis": factor.name,
        "level": level,
        "against": factor.against(level),
        "figure": figure,
        **_numbers(estimate),
        "p_holm": None,
        "share": share,
        "seeds": list(by_seed),
        "seeds_without": [seed for seed in seeds if seed not in by_seed],
        "by_seed": {str(seed): round(mean_of(items), 6) for seed, items in by_seed.items()},
        "pairs": len(usable),
        "pairs_without": len(planned) - len(usable),
        "mean_of_items": _is_mean_of_items(usable, figure),
        "higher_is_better": _higher_is_better(ablation.cells, figure),
        "why_not": None if estimate is not None else _why_not(ablation, planned, usable, figure),
    }


def _numbers(estimate: Estimate | None) -> Record:
    names = ("low", "high", "error", "df", "p", "minimum_detectable", "n_seeds", "n_items", "n_clusters")
    if estimate is None:
        return dict.fromkeys(("difference", *names, "design"))
    found: Record = {"difference": round(estimate.mean, 6)}
    for name in names:
        value = getattr(estimate, name)
        # JSON has no infinity: the normal distribution
        found[name] = None if value == float("inf") else round(value, 6) if name != "p" else value
    return found | {"design": estimate.design}


def _is_mean_of_items(pairs: Sequence[Pair], figure: str) -> bool:
    """False where the figure of a cell is no mean of its items (BLEU over a corpus): the effect then is one
    of the items' own values."""
    for cell in {id(cell): cell for pair in pairs for cell in (pair.cell, pair.against)}.values():
        value = cell.measured.figures.get(figure)
        items = cell.measured.outcomes[figure]
        if value is not None and abs(value.value - mean_of(items)) > 1e-4:
            return False
    return True


def _why_not(ablation: Ablation, planned: Sequence[Pair], usable: Sequence[Pair], figure: str) -> str:
    if not any(has_items(cell, figure) for cell in ablation.cells):
        measured = sorted({name for cell in ablation.cells for name in cell.measured.outcomes})
        if measured:
            return f"no cell was measured by items on {figure}; they have {', '.join(measured)}"
        return "no cell is done and measured yet"
    if not planned:
        return "no cell was planned to hold it against"
    if not usable:
        states = sorted({cell.state for pair in planned for cell in (pair.cell, pair.against)} - {"done"})
        return "no seed has both sides measured" + (f" (cells are {', '.join(states)})" if states else "")
    return "one seed and one cluster of items, or no item in common: nothing tells the spread"


def _by_seed(pairs: Sequence[Pair]) -> dict[int, list[Pair]]:
    found: dict[int, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.seed, []).append(pair)
    return found


def _higher_is_better(cells: Sequence[Cell], figure: str) -> bool | None:
    known = [cell.measured.figures[figure] for cell in cells if figure in cell.measured.figures]
    return known[0].higher_is_better if known else True
