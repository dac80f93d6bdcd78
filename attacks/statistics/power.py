"""What an audit of a given size could not have seen."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from .ranking import tail_rate_distribution
from .rates import LEVEL, mcnemar
from .roc import allowed


def detectable_drop(n: int, *, level: float = LEVEL, power: float = 0.8) -> float:
    """The smallest drop of a rate that exact McNemar's test sees on n paired records with probability `power`.

    It assumes the favourable case, in which no record changes the other way; with churn a drop must be larger.

    Raises:
        ValueError: n is too small to see any drop.
    """
    needed = next(b for b in range(1, 64) if mcnemar(b, 0) < 1 - level)
    if needed > n:
        raise ValueError(f"{n} paired records cannot show any drop at level {level}")

    def chance(drop: float) -> float:
        """Of at least so many changes (the upper tail of the binomial distribution)."""
        return float(scipy.special.betainc(needed, n - needed + 1, drop))

    if chance(1 - 1e-12) < power:
        return 1.0
    return float(scipy.optimize.brentq(lambda drop: chance(drop) - power, 1e-9, 1 - 1e-12))


def detectable_auc(members: int, non_members: int, *, level: float = LEVEL, power: float = 0.8) -> float:
    """The smallest AUC above .5 whose interval excludes .5 with probability `power` (Hanley & McNeil 1982 at .5)."""
    z = float(scipy.special.ndtri((1 + level) / 2) + scipy.special.ndtri(power))
    return min(1.0, 0.5 + z * float(np.sqrt((members + non_members + 1) / (12 * members * non_members))))


@lru_cache(maxsize=64)  # half a second, and asked for whenever an audit is judged
def detectable_tpr(
    members: int, non_members: int, fpr: float = 0.01, *, level: float = LEVEL, power: float = 0.8
) -> float:
    """The smallest TPR at `fpr` whose interval excludes `fpr` (no leak) with probability `power`.

    Found by simulation with a fixed seed, for normal scores whose members are shifted (AUC and TPR rise together).

    Raises:
        ValueError: `fpr` is below 1 / non_members, or with so few records no TPR is told from it.
    """
    allowed(fpr, non_members)
    rng = np.random.default_rng(0)
    draws = [(np.sort(rng.normal(size=members)), np.sort(rng.normal(size=non_members))) for _ in range(100)]

    def seen(shift: float) -> float:
        return float(np.mean([tail_rate_distribution(m + shift, o, fpr)(fpr) < (1 - level) / 2 for m, o in draws]))

    low, high = 0.0, 8.0
    if seen(high) < power:
        raise ValueError(f"with {members} members and {non_members} others no rate is told from {fpr}")
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) >= power else (middle, high)
    return float(scipy.special.ndtr(high + scipy.special.ndtri(fpr)))


def unseen_loss(loss: str, n: int) -> str:
    """Half a sentence: which loss of a rate would have gone unseen with n paired records.

    Args:
        loss: what it is a loss of: `a loss of robust accuracy`.
    """
    try:
        drop = detectable_drop(n)
    except ValueError:
        return f"{loss} of any size would not be told from chance with {n} paired records"
    return f"{loss} below {100 * drop:.1f} points would not be told from chance with {n} paired records"
