"""Models against each other on the answers that both have scored: paired by question, drawn by picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from prismcap.evaluate.intervals import MeanDifference
from prismcap.evaluate.judged.figures import NO_SPREAD, OVERALL, SCALE, groups_of, ratio
from prismcap.evaluate.judged.verdicts import Judgement
from prismcap.evaluate.statistics.clustered import ClusteredItems, effective_n
from prismcap.evaluate.statistics.multiple import holm_by_family
from prismcap.evaluate.statistics.paired import exchange_test, widened
from prismcap.evaluate.statistics.power import minimum_detectable
from prismcap.evaluate.statistics.resample import (
    Floats,
    cluster_index,
    percentile_interval,
    sums_by_cluster,
)

_EQUAL = 1e-9


def compare_models(by_model: Mapping[str, Sequence[Judgement]], seed: int) -> list[dict[str, Any]]:
    """A row per two models and figure: {figure, family, a, b, difference, p, p_holm, minimum_detectable}.

    difference: b - a of the figures on the common questions, with the percentile interval over pictures.
    Where no resample varies (as of one picture), that of shares reaches as far as Wilson's bound of what no
    picture showed; of ratios low and high are None.
    p: of Fisher's randomisation test (1935), which exchanges the models' answers by whole pictures.
    p_holm: corrected within the family: the overall figures of all pairs, and those of the groups.
    minimum_detectable: what a comparison of this size finds with 80% power at 5%, uncorrected; None where
    the differences do not vary. Pairs without a common scored question are left out.
    """
    rows = []
    for (a, of_a), (b, of_b) in combinations(by_model.items(), 2):
        groups_b = dict(groups_of(of_b))
        for name, group in groups_of(of_a):
            pair = _paired(group, groups_b[name])
            if pair is not None:
                family = OVERALL if name == OVERALL else "groups"
                rows.append({"figure": name, "family": family, "a": a, "b": b, **_compare(*pair, seed)})
    corrected = holm_by_family([row["family"] for row in rows], [row["p"] for row in rows])
    for row, p in zip(rows, corrected, strict=True):
        row["p_holm"] = p
    return rows


def _paired(a: Sequence[Judgement], b: Sequence[Judgement]) -> tuple[Floats, list[str]] | None:
    """(float [answers, 4]: gained and possible of a, then of b; pictures) of what both have scored."""
    of_b = {judgement.item.id: judgement.share() for judgement in b}
    values, pictures = [], []
    for judgement in a:
        share, other = judgement.share(), of_b.get(judgement.item.id)
        if share is not None and other is not None:
            values.append([*share, *other])
            pictures.append(judgement.item.image)
    return (np.asarray(values, dtype=np.float64), pictures) if values else None


def _compare(values: Floats, pictures: Sequence[str], seed: int) -> dict[str, Any]:
    items = ClusteredItems(pictures, seed)
    mean, resampled = items.combined(values, lambda sums: ratio(sums[..., 2:]) - ratio(sums[..., :2]))
    low, high = (float(bound) for bound in percentile_interval(resampled))
    shares = bool((values[:, [1, 3]] == 1).all())
    if shares:
        low, high = widened(mean / SCALE, low / SCALE, high / SCALE, items.num_clusters)
        low, high = SCALE * low, SCALE * high
    difference: dict[str, Any] = MeanDifference(mean, low, high, len(values)).as_dict()
    if not shares and high - low < NO_SPREAD:
        difference |= {"low": None, "high": None}
    sums = sums_by_cluster(values, *cluster_index(pictures))
    return {
        "difference": difference,
        "p": exchange_test(sums[:, :2], sums[:, 2:], ratio, seed),
        "minimum_detectable": _detectable(values, pictures),
    }


def _detectable(values: Floats, pictures: Sequence[str]) -> float | None:
    """By the ratios' linear parts: of shares (possible is 1) they are the differences themselves."""
    gained_a, possible_a, gained_b, possible_b = values.T
    ratio_a, ratio_b = gained_a.sum() / possible_a.sum(), gained_b.sum() / possible_b.sum()
    parts = SCALE * (
        (gained_b - ratio_b * possible_b) / possible_b.mean()
        - (gained_a - ratio_a * possible_a) / possible_a.mean()
    )
    if len(parts) < 2 or parts.std() < _EQUAL:
        return None
    n = min(float(len(parts)), effective_n(parts.tolist(), list(pictures)))
    return round(minimum_detectable(n, float(parts.std(ddof=1))), 6)
