from __future__ import annotations

import math

import pytest

from prismcap.evaluate.intervals import MIN_ITEMS, Z_95, rate_of, wilson


@pytest.mark.parametrize(
    ("num_right", "n", "low", "high"),
    [
        # worked by hand with z = 1.96 (z^2 = 3.8416)
        (5, 10, 0.23659, 0.76341),  # centre 0.5, half = 1.96/1.38416 * sqrt(0.025 + 0.009604)
        (0, 10, 0.0, 0.27754),  # high = z^2 / (n + z^2)
        (10, 10, 0.72246, 1.0),
        (1, 1, 0.20655, 1.0),  # low = 1 / (1 + z^2)
        (81, 263, 0.2553, 0.3662),  # the next four: Newcombe 1998, table I, method 3, four digits
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_known_values(num_right: int, n: int, low: float, high: float) -> None:
    rate = wilson(num_right, n)
    assert rate.rate == num_right / n
    assert rate.low == pytest.approx(low, abs=6e-5)
    assert rate.high == pytest.approx(high, abs=6e-5)


def test_wilson_bounds_solve_the_score_equation() -> None:
    """The bounds are the p at which the observed share lies exactly z standard errors away."""
    for num_right, n in [(3, 17), (150, 200), (199, 200)]:
        rate = wilson(num_right, n)
        for bound in (rate.low, rate.high):
            distance = abs(rate.rate - bound) / math.sqrt(bound * (1 - bound) / n)
            assert distance == pytest.approx(Z_95, rel=1e-9)


def test_wilson_is_symmetric_and_inside() -> None:
    for n in (1, 7, 200):
        for k in range(n + 1):
            rate, mirror = wilson(k, n), wilson(n - k, n)
            assert 0 <= rate.low <= rate.rate <= rate.high <= 1
            assert rate.low == pytest.approx(1 - mirror.high, abs=1e-12)


@pytest.mark.parametrize(("num_right", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_rate(num_right: int, n: int) -> None:
    with pytest.raises(ValueError, match="rate needs"):
        wilson(num_right, n)


def test_few_items_are_flagged() -> None:
    assert rate_of([True] * (MIN_ITEMS - 1)).as_dict()["few_items"] is True
    assert "few_items" not in rate_of([True] * MIN_ITEMS).as_dict()
