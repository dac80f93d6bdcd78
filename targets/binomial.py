"""The exact binomial test, by scipy's special functions alone: `scipy.stats` takes half a second to import."""

from __future__ import annotations

import scipy  # its parts load where they are first used


def at_least(count: int, n: int, chance: float) -> float:
    """The probability that `count` or more of `n` come by chance (each in [0, 1]): the one-sided p-value."""
    return float(scipy.special.betainc(count, n - count + 1, chance)) if count > 0 else 1.0


def as_uneven(one: int, other: int) -> float:
    """The probability that fair coins split `one + other` at least as unevenly: McNemar's exact two-sided p-value."""
    return min(1.0, 2 * at_least(max(one, other), one + other, 0.5))


def exact_interval(count: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Clopper and Pearson 1934)."""
    low = float(scipy.special.betaincinv(count, n - count + 1, 0.025)) if count > 0 else 0.0
    high = float(scipy.special.betaincinv(count + 1, n - count, 0.975)) if count < n else 1.0
    return low, high
