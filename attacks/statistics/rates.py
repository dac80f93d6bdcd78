"""Intervals and tests of rates and means. Pure functions of numbers and numpy arrays; each names its paper.

All intervals are two-sided. A rate is in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

Vector = np.ndarray[Any, np.dtype[Any]]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `p_value` tests "no difference" where the quantity is a difference."""

    estimate: float
    low: float
    high: float
    p_value: float | None = None


def clopper_pearson(k: int, n: int, level: float = LEVEL) -> Interval:
    """The exact interval for a rate of `k` in `n` (Clopper & Pearson 1934); covers at least `level`.

    Raises:
        ValueError: n < 1 or k outside [0, n].
    """
    _check_rate(k, n)
    tail = (1 - level) / 2
    low = float(scipy.special.betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(scipy.special.betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(k / n, low, high)


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided p-value of McNemar's test: `b` and `c` records changed one way and the other; 1 if none did.

    The probability, if each change were a coin flip, of a split at least as uneven (Fay 2010).
    """
    return min(1.0, 2 * float(scipy.special.bdtr(min(b, c), b + c, 0.5))) if b + c else 1.0


def tango(b: int, c: int, n: int, level: float = LEVEL) -> Interval:
    """The score interval for the paired difference (b - c) / n, with McNemar's exact p-value (Tango 1998).

    Args:
        b: records that are true in the first series and false in the second.
        c: the other way round.
        n: all records.

    Raises:
        ValueError: n < 1, or b and c are negative or more than n together.
    """
    if n < 1 or b < 0 or c < 0 or b + c > n:
        raise ValueError(f"b={b} and c={c} cannot be counts of disagreement among n={n} records")
    z = float(scipy.special.ndtri((1 + level) / 2))
    estimate = (b - c) / n

    def score(delta: float) -> float:
        # q: the restricted maximum likelihood estimate of the probability of a `c` record, given the difference
        linear = (2 * n - b + c) * delta - b - c
        q = (np.sqrt(max(0.0, linear**2 + 8 * n * c * delta * (1 - delta))) - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        excess = b - c - n * delta
        return (
            float(excess / np.sqrt(variance)) if variance > 0 else float(np.copysign(np.inf, excess)) if excess else 0.0
        )

    edge = 1 - 1e-12
    root = scipy.optimize.brentq
    low = root(lambda d: score(d) - z, -edge, estimate) if estimate > -1 and score(-edge) > z else -1.0
    high = root(lambda d: score(d) + z, estimate, edge) if estimate < 1 and score(edge) < -z else 1.0
    return Interval(estimate, float(low), float(high), mcnemar(b, c))


def paired_change(after: Vector, before: Vector, level: float = LEVEL) -> Interval:
    """mean(after) - mean(before) for two bool vectors [n] on the same records: `tango` with McNemar's p-value."""
    after, before = np.asarray(after, dtype=bool), np.asarray(before, dtype=bool)
    return tango(int((after & ~before).sum()), int((before & ~after).sum()), len(after), level)


def mean(values: Vector, level: float = LEVEL, step: float = 0.0) -> Interval:
    """A mean with Student's t interval, and the two-sided p-value of a true mean of 0; values without spread leave no
    doubt.

    Args:
        step: values are multiples of it: they are taken to spread as much as a rounding to it does, step / sqrt(12), at
            least.
    """
    values = np.asarray(values, dtype=float)
    n, estimate = len(values), float(np.mean(values))
    error = max(float(np.std(values, ddof=1)), step / 12**0.5) / n**0.5 if n > 1 else float("inf")
    if error == 0:
        return Interval(estimate, estimate, estimate, 1.0 if estimate == 0 else 0.0)
    reach = float(scipy.special.stdtrit(n - 1, 0.5 + level / 2)) * error
    return Interval(
        estimate, estimate - reach, estimate + reach, float(2 * scipy.special.stdtr(n - 1, -abs(estimate) / error))
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the given order (Holm 1979); valid under any dependence."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def _check_rate(k: int, n: int) -> None:
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a rate")


def no_better_than_guessing(correct: Vector, labels: Vector) -> bool:
    """Whether the 95 % interval of the balanced accuracy reaches down to that of a guesser.

    The mean of the recalls of the classes that occur: whoever always answers the commonest one gets 1 / classes,
    however common it is.

    Args:
        correct, labels: bool [n] and int64 [n], of every record the accuracy is measured on.
    """
    rates = [float(np.mean(correct[labels == label])) for label in np.unique(labels)]
    return float(np.mean(rates)) - smoothed_error(correct, labels) <= 1 / len(rates)


def smoothed_error(successes: Vector, classes: Vector, level: float = LEVEL) -> float:
    """How far a normal interval of the mean of the classes' rates reaches to either side.

    Rates enter the variance with one success and one failure more (Laplace), so that a class of few records widens the
    interval instead of leaving it.

    Args:
        successes: bool [n]; classes: int64 [n] from 0.
    """
    sizes = np.bincount(classes).astype(float)
    hits = np.bincount(classes, weights=np.asarray(successes, dtype=float), minlength=len(sizes))[sizes > 0]
    sizes = sizes[sizes > 0]
    smoothed = (hits + 1) / (sizes + 2)
    error = float(np.sqrt((smoothed * (1 - smoothed) / sizes).sum())) / len(sizes)
    return NormalDist().inv_cdf((1 + level) / 2) * error


def percent(successes: Vector, digits: int = 1) -> str:
    """A share of bool [n] in a sentence, with its interval: `61.3 % [55.3, 66.4]`."""
    share = clopper_pearson(int(np.sum(successes)), len(successes))
    low, high = (f"{100 * end:.{digits}f}" for end in (share.low, share.high))
    return f"{100 * share.estimate:.{digits}f} % [{low}, {high}]"
