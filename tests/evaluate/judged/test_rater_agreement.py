"""Agreement between raters, against values from the literature and by hand."""

from __future__ import annotations

import random

import pytest

from prismcap.evaluate.judged.agreement import Level, agreement, krippendorff_alpha, raw_agreement

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
UNITS = [
    [float(value) for value in unit if value != "."]
    for unit in zip(*(line.split() for line in OBSERVERS), strict=True)
]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_published_example(level: Level, alpha: float) -> None:
    assert krippendorff_alpha(UNITS, level) == pytest.approx(alpha, abs=0.0005)


def test_alpha_by_hand_of_two_raters() -> None:
    # 8 ratings of 4 units: five 1s, three 0s; one unit disagrees, which is 2 ordered pairs.
    # D_o = 2 / 8, D_e = 2 * 5 * 3 / (8 * 7): alpha = 1 - 0.25 / (30 / 56)
    units = [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    assert krippendorff_alpha(units, "nominal") == pytest.approx(1 - 0.25 / (30 / 56))


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_one_for_the_like_minded_and_near_zero_by_chance(level: Level) -> None:
    assert krippendorff_alpha([[1, 1], [2, 2], [3, 3]], level) == 1.0
    rng = random.Random(0)
    noise = [[float(rng.randrange(4)) for _ in range(3)] for _ in range(2000)]
    alpha = krippendorff_alpha(noise, level)
    assert alpha is not None and abs(alpha) < 0.04


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_the_order_of_raters_and_lone_ratings_do_not_matter(level: Level) -> None:
    rng = random.Random(1)
    mixed = [rng.sample(unit, len(unit)) for unit in UNITS]
    rng.shuffle(mixed)
    assert krippendorff_alpha([*mixed, [9.0], []], level) == pytest.approx(krippendorff_alpha(UNITS, level))


def test_near_misses_cost_less_on_an_ordered_scale() -> None:
    near = [[1, 2], [2, 2], [3, 3], [4, 4], [1, 1]]
    far = [[1, 4], [2, 2], [3, 3], [4, 4], [1, 1]]
    for level in ("ordinal", "interval"):
        one, other = krippendorff_alpha(near, level), krippendorff_alpha(far, level)
        assert one is not None and other is not None and one > other


def test_where_there_is_nothing_to_agree_about_none_is_said() -> None:
    assert krippendorff_alpha([[1, 1], [1, 1]], "ordinal") is None
    assert krippendorff_alpha([[1], [2]], "nominal") is None
    assert raw_agreement([["A"], []]) is None
    assert agreement([["A"]], [[3.0]], "ordinal") == {
        "raw": None,
        "alpha": None,
        "level": "ordinal",
        "units": 0,
    }


def test_raw_agreement_counts_pairs() -> None:
    # 3 pairs in the first unit, one of them equal; 1 in the second
    assert raw_agreement([["A", "A", "B"], ["C", "C"], ["D"]]) == pytest.approx(2 / 4)
