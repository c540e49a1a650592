"""Models against each other on the answers that both have scored: paired by question, drawn by picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from prismcap.evaluate.intervals import MeanDifference
from prismcap.evaluate.judged.figures import NO_SPREAD, OVERALL, SCALE, groups_of
from prismcap.evaluate.judged.verdicts import Judgement
from prismcap.evaluate.statistics.clustered import effective_n
from prismcap.evaluate.statistics.multiple import holm_by_family
from prismcap.evaluate.statistics.paired import exchange_test, widened
from prismcap.evaluate.statistics.power import minimum_detectable
from prismcap.evaluate.statistics.resample import (
    Floats,
    Resamples,
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
    index, num_pictures = cluster_index(pictures)
    sums = sums_by_cluster(values, index, num_pictures)
    ratios = Resamples(num_pictures, seed).ratios(sums[:, [0, 2]], sums[:, [1, 3]])
    of_a, of_b = sums[:, :2], sums[:, 2:]
    mean = float(_figure(of_b.sum(axis=0)) - _figure(of_a.sum(axis=0)))
    interval = _interval(mean, SCALE * (ratios[:, 1] - ratios[:, 0]), values, num_pictures)
    found = MeanDifference(mean, *(interval or (mean, mean)), len(values)).as_dict()
    return {
        "difference": found if interval is not None else {**found, "low": None, "high": None},
        "p": exchange_test(of_a, of_b, _figure, seed),
        "minimum_detectable": _detectable(values, pictures),
    }


def _interval(
    mean: float, resampled: Floats, values: Floats, num_pictures: int
) -> tuple[float, float] | None:
    """Where no resample varies, shares (possible is 1) have paired.widened's; of ratios nothing is known."""
    lows, highs = percentile_interval(resampled[:, None])
    low, high = float(lows[0]), float(highs[0])
    if (values[:, [1, 3]] == 1).all():
        low, high = widened(mean / SCALE, low / SCALE, high / SCALE, num_pictures)
        return SCALE * low, SCALE * high
    return None if high - low < NO_SPREAD else (low, high)


def _figure(sums: Floats) -> Floats:
    """On the scale of the figures; sums [..., 2]: gained and possible."""
    return SCALE * np.asarray(sums[..., 0] / sums[..., 1])


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
