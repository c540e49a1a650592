"""The figures of judged answers: 100 * (sum of gained) / (sum of possible), resampled by picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev, stdev
from typing import Any

import numpy as np

from prismcap.evaluate.intervals import MIN_ITEMS
from prismcap.evaluate.judged.agreement import Level, agreement
from prismcap.evaluate.judged.verdicts import Judgement
from prismcap.evaluate.statistics.clustered import ClusteredItems, clustered_mean, clustered_rate
from prismcap.evaluate.statistics.resample import Floats, percentile_interval

SCALE = 100.0
OVERALL = "overall"
NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Shares:
    """(gained, possible) of scored answers, and the pictures that they are about.

    shares: float [answers, 2].
    """

    shares: Floats
    pictures: tuple[str, ...]

    @classmethod
    def of(cls, judgements: Sequence[Judgement], raters: Sequence[str] | None = None) -> Shares:
        """Answers without a score are left out."""
        found = [(judgement.share(raters), judgement.item.image) for judgement in judgements]
        scored = [(share, image) for share, image in found if share is not None]
        values = np.asarray([share for share, _ in scored], dtype=np.float64).reshape(-1, 2)
        return cls(values, tuple(image for _, image in scored))

    @property
    def value(self) -> float:
        return float(ratio(self.shares.sum(axis=0)))


def ratio(sums: Floats) -> Floats:
    """On the scale of the figures; sums [..., 2]: gained and possible."""
    return np.asarray(SCALE * sums[..., 0] / sums[..., 1])


def figure(shares: Shares, seed: int = 0) -> dict[str, Any]:
    """{value, low, high, n, num_pictures, few_items}; the value is None where nothing is scored.

    The 95% interval resamples pictures. Of shares (possible is 1) it is clustered_rate's, so Wilson's for
    flags whose pictures are all different. low and high are None where nothing is known of the spread: one
    picture, or a ratio that is the same whatever is drawn.
    """
    n, num_pictures = len(shares.pictures), len(set(shares.pictures))
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "n": n, "num_pictures": num_pictures}
    if n < MIN_ITEMS:
        found["few_items"] = True
    if n == 0:
        return found
    found["value"] = round(shares.value, 6)
    interval = _interval(shares, seed)
    if interval is not None:
        found["low"], found["high"] = round(interval[0], 6), round(interval[1], 6)
    return found


def _interval(shares: Shares, seed: int) -> tuple[float, float] | None:
    if (shares.shares[:, 1] == 1).all():
        rate = clustered_rate(shares.shares[:, 0].tolist(), shares.pictures, seed)
        return SCALE * rate.low, SCALE * rate.high
    _, resampled = ClusteredItems(shares.pictures, seed).combined(shares.shares, ratio)
    low, high = (float(bound) for bound in percentile_interval(resampled))
    return None if high - low < NO_SPREAD else (low, high)


def groups_of(judgements: Sequence[Judgement]) -> Iterator[tuple[str, list[Judgement]]]:
    """(name of a figure, its answers): overall, then `kind.name` of every group of the items."""
    yield OVERALL, list(judgements)
    names: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        for kind, of in judgement.item.groups.items():
            for name in of:
                names.setdefault(f"{kind}.{name}", []).append(judgement)
    yield from sorted(names.items())


def model_figures(judgements: Sequence[Judgement], seed: int) -> dict[str, dict[str, Any]]:
    """Figure's name -> figure, of one model's answers."""
    return {name: figure(Shares.of(of), seed) for name, of in groups_of(judgements)}


def counts(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """{answers, scored, unread, failed, unrated, replies, unread_replies, failed_replies}: what is not
    scored is left out of the figures, and never counts as 0."""
    statuses = [judgement.status for judgement in judgements]
    replies = [verdict.status for judgement in judgements for verdict in judgement.verdicts]
    return {
        "answers": len(statuses),
        **{status: statuses.count(status) for status in ("scored", "unread", "failed", "unrated")},
        "replies": len(replies),
        "unread_replies": replies.count("unread"),
        "failed_replies": replies.count("failed"),
    }


def position_bias(
    judgements: Sequence[Judgement], orders: tuple[str, str] | None, seed: int
) -> dict[str, Any] | None:
    """What a place earns: {first_minus_second, changed_winner}; None where no two answers are compared.

    first_minus_second: mean score of the answer that stood first minus that of the other, over both orders of
    each answer, in points of the scale, with its interval; 0 of a judge that does not mind. changed_winner:
    share of answers, over the judge's repeats, for which another side wins (or ties) in the other order.
    """
    if orders is None:
        return None
    favours: list[float] = []
    changed: list[float] = []
    pictures: list[str] = []
    for judgement in judgements:
        for verdicts in judgement.whole.values():
            leads = {one.part: one.reading.gained - one.reading.possible for one in verdicts if one.reading}
            reference_first, model_first = (leads[order] for order in orders)
            favours.append((model_first - reference_first) / 2)
            changed.append(float(np.sign(model_first) != np.sign(reference_first)))
            pictures.append(judgement.item.image)
    if not favours:
        return None
    return {
        "first_minus_second": clustered_mean(favours, pictures, seed).as_dict(),
        "changed_winner": clustered_rate(changed, pictures, seed).as_dict(),
    }


def label_shares(judgements: Sequence[Judgement], labels: Sequence[str]) -> dict[str, float]:
    """Label -> share among the verdicts that count; empty without labels or verdicts."""
    found = [
        verdict.reading.label
        for judgement in judgements
        for verdicts in judgement.whole.values()
        for verdict in verdicts
        if verdict.reading is not None
    ]
    return {label: round(found.count(label) / len(found), 6) for label in labels} if found else {}


def self_agreement(judgements: Sequence[Judgement], repeats: int, level: Level) -> dict[str, Any] | None:
    """How far a judge agrees with itself: agreement over its repeats, {…, figures, spread, answer_spread}.

    figures: overall, of each repeat alone; spread: their standard deviation; answer_spread: the mean, over
    answers, of the standard deviation of one answer's score over the repeats. None with one repeat.
    """
    if repeats < 2:
        return None
    names = [f"repeat {repeat + 1}" for repeat in range(repeats)]
    alone = [Shares.of(judgements, [name]) for name in names]
    figures = [shares.value if len(shares.pictures) else None for shares in alone]
    known = [value for value in figures if value is not None]
    spreads = []
    for judgement in judgements:
        scores = [SCALE * share[0] / share[1] for name in names if (share := judgement.share([name]))]
        if len(scores) > 1:
            spreads.append(pstdev(scores))
    return {
        **rater_agreement(judgements, level),
        "figures": [None if value is None else round(value, 6) for value in figures],
        "spread": round(stdev(known), 6) if len(known) > 1 else None,
        "answer_spread": round(fmean(spreads), 6) if spreads else None,
    }


def rater_agreement(judgements: Sequence[Judgement], level: Level) -> dict[str, Any]:
    """Over all parts of all answers; a unit is one part of one answer."""
    units: list[Mapping[str, list[Any]]] = []
    for judgement in judgements:
        by_part: dict[str, list[Any]] = {}
        for verdict in judgement.verdicts:
            if verdict.reading is not None:
                by_part.setdefault(verdict.part, []).append(verdict.reading)
        units.append(by_part)
    readings = [of for unit in units for of in unit.values()]
    return agreement(
        [[one.label for one in of] for of in readings], [[one.rank for one in of] for of in readings], level
    )
