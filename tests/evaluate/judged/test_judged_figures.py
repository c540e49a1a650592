"""Figures and comparisons of judged answers, against plain arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from prismcap.evaluate.judged.comparisons import compare_models
from prismcap.evaluate.judged.figures import (
    Shares,
    counts,
    figure,
    groups_of,
    model_figures,
    position_bias,
    self_agreement,
)
from prismcap.evaluate.judged.protocols._contract import JudgedItem, Reading
from prismcap.evaluate.judged.table import comparison_lines
from prismcap.evaluate.judged.verdicts import Judgement, Verdict
from prismcap.evaluate.statistics.clustered import clustered_rate
from prismcap.evaluate.statistics.multiple import holm
from prismcap.evaluate.statistics.paired import exchange_test, paired_difference

ORDERS = ("reference_first", "model_first")


def item(number: int, image: str = "", **groups: str) -> JudgedItem:
    named = {kind: tuple(names.split()) for kind, names in groups.items()}
    return JudgedItem(str(number), "Q?", image or f"{number}.jpg", "", named)


def pair(number: int, first: tuple[float, float], second: tuple[float, float], **keys: Any) -> Judgement:
    """(model's, reference's score) with the reference first, and with the model first."""
    verdicts = [
        Verdict(order, "repeat 1", Reading(model, reference, f"{model} {reference}", model), "read")
        for order, (model, reference) in zip(ORDERS, (first, second), strict=True)
    ]
    return Judgement(keys.pop("model", "m"), item(number, **keys), "", 2, tuple(verdicts))


def scored(number: int, value: float, model: str = "m", image: str = "", **groups: str) -> Judgement:
    verdict = Verdict("answer", "repeat 1", Reading(value, 1.0, str(value), value), "read")
    return Judgement(model, item(number, image, **groups), "", 1, (verdict,))


def broken(number: int, status: Any) -> Judgement:
    good = Verdict(ORDERS[0], "repeat 1", Reading(9, 9, "9 9", 9), "read")
    return Judgement("m", item(number), "", 2, (good, Verdict(ORDERS[1], "repeat 1", None, status)))


def test_a_figure_is_the_ratio_of_sums_over_both_orders() -> None:
    judgements = [pair(0, (8, 6), (6, 8), image="a"), pair(1, (2, 10), (4, 10), image="b")]
    # means of the orders: 7 of 7, 3 of 10
    found = model_figures(judgements, seed=0)["overall"]
    assert found["value"] == pytest.approx(100 * 10 / 17, abs=1e-4)
    assert (found["n"], found["num_pictures"], found["few_items"]) == (2, 2, True)
    assert found["low"] == pytest.approx(30) and found["high"] == pytest.approx(100)


def test_what_is_not_read_whole_is_counted_and_left_out() -> None:
    judgements = [pair(0, (5, 10), (5, 10)), broken(1, "unread"), broken(2, "failed")]
    assert figure(Shares.of(judgements))["value"] == 50
    found = counts(judgements)
    assert (found["scored"], found["unread"], found["failed"], found["answers"]) == (1, 1, 1, 3)
    assert (found["replies"], found["unread_replies"], found["failed_replies"]) == (6, 1, 1)
    nothing = figure(Shares.of(judgements[1:]))
    assert nothing["value"] is None and nothing["n"] == 0


def test_shares_have_the_interval_of_rates() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.4]
    pictures = ["a", "a", "b", "c", "c"]
    found = figure(
        Shares.of([scored(n, v, image=p) for n, (v, p) in enumerate(zip(values, pictures, strict=True))])
    )
    rate = clustered_rate(values, pictures)
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (100 * rate.rate, 100 * rate.low, 100 * rate.high), abs=1e-4
    )


def test_of_one_picture_nothing_is_known_of_the_spread() -> None:
    found = figure(Shares.of([pair(0, (5, 7), (5, 7), image="a"), pair(1, (8, 9), (8, 9), image="a")]))
    assert found["low"] is None and found["high"] is None and found["value"] is not None


def test_an_interval_of_pictures_is_wider_than_one_of_questions() -> None:
    rng = np.random.default_rng(0)
    quality = rng.integers(2, 9, size=30)
    together = [
        pair(3 * p + q, (quality[p], 8), (quality[p], 8), image=str(p)) for p in range(30) for q in range(3)
    ]
    apart = [pair(n, (quality[n // 3], 8), (quality[n // 3], 8)) for n in range(90)]
    wide, narrow = figure(Shares.of(together)), figure(Shares.of(apart))
    assert wide["value"] == narrow["value"]
    assert wide["high"] - wide["low"] > 1.4 * (narrow["high"] - narrow["low"])


def test_groups_hold_their_items() -> None:
    judgements = [scored(0, 1.0, ability="a b"), scored(1, 0.0, ability="b")]
    found = model_figures(judgements, seed=0)
    assert list(found) == ["overall", "ability.a", "ability.b"]
    assert [of["value"] for of in found.values()] == [50, 100, 50]
    assert [len(of) for _, of in groups_of(judgements)] == [2, 1, 2]


def test_position_bias_is_what_the_first_place_earns() -> None:
    # the reference earns 7 first and 5 second, the model 8 first and 5 second: 2 and 3 for the first place
    found = position_bias([pair(0, (5, 7), (8, 5)), pair(1, (5, 7), (8, 5))], ORDERS, seed=0)
    assert found is not None
    assert found["first_minus_second"]["mean"] == pytest.approx(((7 - 5) + (8 - 5)) / 2)
    assert found["changed_winner"]["rate"] == 1.0
    fair = position_bias([pair(0, (5, 7), (5, 7)), pair(1, (9, 2), (9, 2))], ORDERS, seed=0)
    assert fair is not None and fair["first_minus_second"]["mean"] == 0
    assert fair["changed_winner"]["rate"] == 0
    assert position_bias([scored(0, 1.0)], None, seed=0) is None


def repeated(number: int, values: Sequence[float]) -> Judgement:
    verdicts = tuple(
        Verdict("answer", f"repeat {k + 1}", Reading(value, 1.0, str(value), value), "read")
        for k, value in enumerate(values)
    )
    return Judgement("m", item(number), "", 1, verdicts)


def test_self_agreement_by_hand() -> None:
    found = self_agreement([repeated(0, (1.0, 0.0)), repeated(1, (1.0, 1.0))], 2, "interval")
    assert found is not None
    assert found["raw"] == 0.5 and found["units"] == 2
    assert found["figures"] == [100, 50] and found["spread"] == pytest.approx(50 / 2**0.5, abs=1e-5)
    assert found["answer_spread"] == pytest.approx(
        25
    )  # 50 points to either side of one answer's mean, 0 of the other's
    assert self_agreement([scored(0, 1.0)], 1, "interval") is None


def exchanged(sums: Any) -> float:
    """p of [pictures, 4]: gained and possible of one model, then of the other."""
    return exchange_test(sums[:, :2], sums[:, 2:], lambda of: of[..., 0] / of[..., 1], seed=0)


def test_the_exchange_test_is_exact_for_few_pictures() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        sums = rng.integers(1, 9, size=(6, 4)).astype(float)

        def gap(rows: Any) -> float:
            a, pa, b, pb = np.sum(rows, axis=0)
            return abs(100 * (b / pb - a / pa))

        gaps = [
            gap([row[[2, 3, 0, 1]] if swap else row for row, swap in zip(sums, swaps, strict=True)])
            for swaps in itertools.product((False, True), repeat=6)
        ]
        expected = np.mean([one >= gap(sums) - 1e-9 for one in gaps])
        assert exchanged(sums) == pytest.approx(expected)


def test_random_exchanges_come_near_the_exact_ones() -> None:
    rng = np.random.default_rng(5)
    told = rng.integers(1, 9, size=(12, 4)).astype(float)
    exact = exchanged(told)
    # a thirteenth picture that hardly tells the models apart: drawn, not counted through
    drawn = exchanged(np.vstack([told, [5, 5, 5 + 1e-6, 5]]))
    assert drawn == pytest.approx(exact, abs=0.02)


def test_equal_models_differ_by_nothing_and_p_is_uniform_under_chance() -> None:
    same = [scored(n, 0.5) for n in range(4)]
    (row,) = compare_models({"a": same, "b": same}, seed=0)
    assert row["difference"]["mean"] == 0 and row["p"] == 1.0 and row["minimum_detectable"] is None
    rng = np.random.default_rng(7)
    ones = np.ones((9, 1))
    found = [exchanged(np.hstack([rng.random((9, 1)), ones, rng.random((9, 1)), ones])) for _ in range(400)]
    assert 0.02 <= np.mean(np.asarray(found) <= 0.05) <= 0.09


def test_models_are_compared_on_what_both_have() -> None:
    a = [scored(n, float(n % 2), "a", image=str(n // 2), kind="x") for n in range(20)]
    b = [scored(n, 1.0, "b", image=str(n // 2), kind="x") for n in range(19)]
    c = [scored(n, float(n % 3 == 0), "c", image=str(n // 2), kind="x") for n in range(20)]
    rows = compare_models({"a": a, "b": b, "c": c}, seed=0)
    assert [(row["a"], row["b"]) for row in rows if row["family"] == "overall"] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    first = rows[0]
    assert first["difference"]["n"] == 19
    assert first["difference"]["mean"] == pytest.approx(100 * (1 - 9 / 19), abs=1e-4)
    assert first["difference"]["low"] > 0 and first["p"] < 0.01
    for family in ("overall", "groups"):
        of = [row for row in rows if row["family"] == family]
        assert [row["p_holm"] for row in of] == holm([row["p"] for row in of])
    # values 0 and 100 of single questions: the spread of the differences over the root of n, times 2.80
    spread = np.std([100.0 * (1 - n % 2) for n in range(19)], ddof=1)
    assert first["minimum_detectable"] == pytest.approx(2.8016 * spread / 19**0.5, rel=0.01)


@pytest.mark.parametrize("pictures", ["abcd", "aabb", "aaaa"])
@pytest.mark.parametrize("b", [1.0, 0.0])
def test_differences_of_shares_that_no_resample_varies_reach_as_far_as_those_of_pairs(
    b: float, pictures: str
) -> None:
    wrong = [scored(n, 0.0, "wrong", image=image) for n, image in enumerate(pictures)]
    others = [scored(n, b, "other", image=image) for n, image in enumerate(pictures)]
    (row,) = compare_models({"wrong": wrong, "other": others}, seed=0)
    found, expected = row["difference"], paired_difference([0.0] * 4, [b] * 4, list(pictures))
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(
        (100 * expected.mean, 100 * expected.low, 100 * expected.high), abs=1e-4
    )
    assert found["high"] - found["low"] > 30, "of four answers at most"


@pytest.mark.parametrize("images", ["aa", "ab"])
def test_a_difference_of_ratios_that_no_resample_varies_has_no_interval(images: str) -> None:
    low = [pair(n, (3, 6), (3, 6), model="low", image=image) for n, image in enumerate(images)]
    high = [pair(n, (6, 6), (6, 6), model="high", image=image) for n, image in enumerate(images)]
    rows = compare_models({"low": low, "high": high}, seed=0)
    assert rows[0]["difference"] == {"mean": 50, "low": None, "high": None, "n": 2, "few_items": True}
    assert comparison_lines(rows)[0].startswith("overall: low -> high +50.0 (- .. -), n = 2; p = ")
