"""The smallest true difference that a comparison of this size would find: what "no difference" is worth."""

from __future__ import annotations

import math
from statistics import NormalDist

ALPHA = 0.05
POWER = 0.8  # the customary pair (Cohen, Statistical Power Analysis, 1988)


def minimum_detectable(n: float, spread: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Of paired real values: the mean difference that a two-sided test of level alpha finds with this power.

    spread: standard deviation of the per-item differences; the result is in its unit. n: items, or the
    effective number of them where they come in clusters (clustered.effective_n). Normal approximation.
    Raises ValueError when n is not positive or the spread negative.
    """
    _check(n, spread, alpha, power)
    return (_z(1 - alpha / 2) + _z(power)) * spread / math.sqrt(n)


def minimum_detectable_unpaired(
    n_a: float,
    spread_a: float,
    n_b: float,
    spread_b: float,
    alpha: float = ALPHA,
    power: float = POWER,
) -> float:
    """As minimum_detectable, of two independent sets' means; a rate p has the spread sqrt(p (1 - p))."""
    _check(n_a, spread_a, alpha, power)
    _check(n_b, spread_b, alpha, power)
    return (_z(1 - alpha / 2) + _z(power)) * math.hypot(spread_a / math.sqrt(n_a), spread_b / math.sqrt(n_b))


def minimum_detectable_flags(
    n: float, discordance: float, alpha: float = ALPHA, power: float = POWER
) -> float:
    """Of paired right and wrong: the difference of rates that McNemar's test finds with this power.

    discordance: share of pairs in which exactly one is right. Solves Connor's formula (Biometrics 1987),
    sqrt(n) d = z_alpha/2 sqrt(D) + z_power sqrt(D - d^2), for d. A difference of d needs a discordance D of
    d at least, so where the one observed is smaller, D is d. 1.0 where not even that would be found.
    Raises ValueError when n is not positive or the discordance outside 0..1.
    """
    _check(n, discordance, alpha, power)
    if discordance > 1:
        raise ValueError(f"a discordance is a share of pairs, got {discordance}")
    z_alpha, z_power = _z(1 - alpha / 2), _z(power)

    def found(difference: float) -> bool:
        discordant = max(discordance, difference)
        needed = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(discordant - difference**2)
        return math.sqrt(n) * difference >= needed

    low, high = 0.0, 1.0
    if not found(high):
        return 1.0
    for _ in range(60):  # halvings: to the last bit
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def _z(share: float) -> float:
    return NormalDist().inv_cdf(share)


def _check(n: float, spread: float, alpha: float, power: float) -> None:
    if not n > 0 or not spread >= 0:
        raise ValueError(f"power needs n > 0 and a spread >= 0, got n={n}, spread={spread}")
    if not 0 < alpha < 1 or not 0 < power < 1:
        raise ValueError(f"alpha and power must lie between 0 and 1, got {alpha} and {power}")
