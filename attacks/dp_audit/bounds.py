"""Lower confidence bounds on epsilon from scores of worlds with and without a record. Pure functions of numbers.

Every bound is one-sided: under (epsilon, delta)-differential privacy (or, where it says so, under a mechanism of the
claimed kind) it exceeds epsilon with a probability of at most `alpha`, whatever the scores are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used

Vector = np.ndarray[Any, np.dtype[Any]]

MOST = 60.0  # the largest epsilon that a bound can state


def rate_low(k: int, n: int, alpha: float) -> float:
    """The one-sided lower bound of a rate of k in n (Clopper & Pearson 1934)."""
    return float(scipy.special.betaincinv(k, n - k + 1, alpha)) if k > 0 else 0.0


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of telling N(0, 1) from N(mu, 1) (Balle & Wang 2018, theorem 5; Dong et al. 2019)."""
    if mu <= 0:
        return 0.0
    log = scipy.special.log_ndtr

    def excess(epsilon: float) -> float:
        first, second = log(mu / 2 - epsilon / mu), epsilon + log(-mu / 2 - epsilon / mu)
        return float(np.exp(first) * -np.expm1(min(0.0, second - first))) - delta

    if excess(0.0) <= 0:
        return 0.0
    return MOST if excess(MOST) > 0 else float(scipy.optimize.brentq(excess, 0.0, MOST))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The inverse of `gaussian_epsilon`: how many standard deviations apart at `epsilon`, both at most `MOST`."""
    return float(scipy.optimize.brentq(lambda mu: gaussian_epsilon(mu, delta) - epsilon, 0.0, 20.0))


def pairs_told(first: Vector, second: Vector) -> int:
    """In how many of n pairs the world with the record has the higher score; every other tie counts."""
    ties = int((first == second).sum())
    return int((first > second).sum()) + ties // 2


def mu_of_pairs(told: int, pairs: int, alpha: float) -> float:
    """A lower bound on mu of a Gaussian trade-off from pairs of worlds, one of each kind, told apart by their scores.

    Whoever sees both worlds of a pair names the one with the record with a probability of at most Phi(mu / sqrt 2):
    the area under the best ROC curve. So `told` is at most binomial, and the bound is exact.
    """
    rate = rate_low(told, pairs, alpha)
    return max(0.0, math.sqrt(2) * float(scipy.special.ndtri(rate))) if rate > 0.5 else 0.0


def threshold_epsilon(first: Vector, second: Vector, delta: float, alpha: float) -> float:
    """A lower bound on epsilon that assumes nothing about the mechanism (Nasr et al. 2021, arXiv:2101.04535).

    The first quarter of the worlds chooses the threshold and the side, the rest judges it by two Clopper-Pearson
    bounds at alpha / 2 each.

    Args:
        first, second: scores [n] with and without the record; independent worlds.
    """
    cut = len(first) // 4
    levels = np.unique(np.quantile(np.concatenate([first[:cut], second[:cut]]), np.linspace(0, 1, 201)))
    # The quarter's counts are made as large as those that will judge: otherwise it would shun the tails
    with_it, without = _sides(levels, first[:cut], second[:cut], 3, delta, alpha)
    level, side = int(np.argmax(np.maximum(with_it, without))), int(without.max() > with_it.max())
    return float(_sides(levels[level : level + 1], first[cut:], second[cut:], 1, delta, alpha)[side][0])


def _sides(
    levels: Vector, first: Vector, second: Vector, times: int, delta: float, alpha: float
) -> tuple[Vector, Vector]:
    """Bounds at each level, each count taken `times`: of calling what reaches it a world with the record, and what
    does not one without.
    """
    n, alpha = len(first) * times, alpha / 2
    reached, passed = (times * (len(some) - np.searchsorted(np.sort(some), levels)) for some in (first, second))

    def epsilon(true: Vector, false: Vector) -> Vector:
        low = np.where(true > 0, scipy.special.betaincinv(np.maximum(true, 1), n - np.maximum(true, 1) + 1, alpha), 0.0)
        high = np.where(false < n, scipy.special.betaincinv(false + 1, np.maximum(n - false, 1), 1 - alpha), 1.0)
        return np.log(np.maximum(low - delta, high) / high)

    return epsilon(reached, passed), epsilon(n - passed, n - reached)


def guesses_epsilon(canaries: int, guesses: int, right: int, delta: float, alpha: float) -> float:
    """A lower bound on epsilon from one training, each canary in it by a fair coin (Steinke et al. 2023,
    arXiv:2305.08846, theorem 5.2); it assumes nothing about the mechanism.

    Args:
        canaries: all of them.
        guesses: of how many the auditor said "in" or "out".
        right: guesses that were right.
    """
    if guesses < 1:
        return 0.0

    def p_value(epsilon: float) -> float:
        chance = 1 / (1 + math.exp(-epsilon))
        tail = float(scipy.stats.binom.sf(right - 1, guesses, chance))
        mass = scipy.stats.binom.pmf(right - np.arange(1, right + 1), guesses, chance)
        steps = np.cumsum(mass) / np.arange(1, right + 1)
        return min(1.0, tail + 2 * canaries * delta * float(steps.max(initial=0.0)))

    return _largest(lambda epsilon: p_value(epsilon) <= alpha)


def guesses_gaussian_epsilon(canaries: int, guesses: int, right: int, delta: float, alpha: float) -> float:
    """As `guesses_epsilon`, for a mechanism with a Gaussian trade-off (Mahloujifar et al. 2024, arXiv:2410.22235).

    It allows for any dependence between the canaries' scores.
    """

    def refuted(mu: float) -> bool:
        right_share, wrong_share = alpha * right / canaries, alpha * (guesses - right) / canaries
        for i in range(right - 1, -1, -1):
            needed = max(wrong_share, float(scipy.special.ndtr(scipy.special.ndtri(right_share) - mu)))
            if needed == wrong_share:
                break
            right_share = min(1.0, right_share + i / (guesses - i) * (needed - wrong_share))
            wrong_share = needed
        return right_share + wrong_share > guesses / canaries

    if guesses < 1:
        return 0.0
    return gaussian_epsilon(_largest(refuted, most=12.0), delta)


def _largest(refuted: Callable[[float], bool], most: float = MOST) -> float:
    """The largest value that is refuted, all smaller ones being so too; 0 where none is."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, most
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
