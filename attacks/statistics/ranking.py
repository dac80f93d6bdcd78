"""The area under the ROC curve and the true positive rate at a fixed false positive rate, with their errors.

A score is higher for records believed to be members. All intervals are two-sided; each function names its paper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from ...targets.recent import Recent
from .rates import LEVEL, Interval, clopper_pearson
from .roc import allowed, placements, threshold_at_fpr
from .roc import tpr_at_fpr as tpr_point

Vector = np.ndarray[Any, np.dtype[Any]]
Distribution = Callable[[float], float]
_drawn: Recent[tuple[Vector, Vector]] = Recent(2**25)


def auc(scores: Vector, is_member: Vector, level: float = LEVEL, *, spread: float = 0.0) -> Interval:
    """The area under the ROC curve, P(member's score > non-member's) + P(tie) / 2, by DeLong et al. (1988).

    The interval is symmetric on the logit scale, so that it stays in [0, 1] (Pepe 2003, 5.2); at an AUC of 0 or 1,
    where DeLong's variance is 0, it is the exact one for n agreeing pairs of the smaller group (rule of three).

    Args:
        scores: float [n].
        is_member: bool [n]; both sorts must occur, each at least twice.
        spread: a standard deviation that an area of .5 has beside the error of these records, added in quadrature: of
            a shift that all of a model's scores have in common. It moves an area near 0 or 1 less.

    Raises:
        ValueError: fewer than two of a sort, or a score that is not finite.
    """
    members, others = _placements(scores, is_member)
    area = float(members.mean())
    z = float(scipy.special.ndtri((1 + level) / 2))
    shift = spread * float(np.exp(-0.5 * scipy.special.ndtri(area) ** 2))  # as under normal scores
    error = float(np.sqrt(members.var(ddof=1) / len(members) + others.var(ddof=1) / len(others) + shift**2))
    if error == 0 or area in (0.0, 1.0):
        few = min(len(members), len(others))
        exact = clopper_pearson(round(area * few), few, level)
        return Interval(area, min(area, exact.low), max(area, exact.high))
    half = z * error / (area * (1 - area))
    return Interval(
        area,
        float(scipy.special.expit(scipy.special.logit(area) - half)),
        float(scipy.special.expit(scipy.special.logit(area) + half)),
    )


def auc_change(after: Vector, before: Vector, is_member: Vector, level: float = LEVEL) -> Interval:
    """AUC(after) - AUC(before) of two scores of the same records, with p-value (paired DeLong et al. 1988).

    Raises:
        ValueError: as `auc`.
    """
    members1, others1 = _placements(after, is_member)
    members0, others0 = _placements(before, is_member)
    error = float(
        np.sqrt((members1 - members0).var(ddof=1) / len(members1) + (others1 - others0).var(ddof=1) / len(others1))
    )
    difference = float(members1.mean() - members0.mean())
    if error == 0:
        return Interval(difference, difference, difference, 1.0 if difference == 0 else 0.0)
    z = float(scipy.special.ndtri((1 + level) / 2))
    p_value = 2 * float(scipy.special.ndtr(-abs(difference) / error))
    return Interval(difference, max(-1.0, difference - z * error), min(1.0, difference + z * error), p_value)


def roc(scores: Vector, is_member: Vector) -> tuple[Vector, Vector]:
    """False and true positive rates at every distinct threshold, from (0, 0) to (1, 1), float64 [m] each."""
    members, others = _split(scores, is_member)
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    false = len(others) - np.searchsorted(others, thresholds)
    true = len(members) - np.searchsorted(members, thresholds)
    return np.concatenate([[0.0], false / len(others)]), np.concatenate([[0.0], true / len(members)])


# The true positive rate at a fixed false positive rate


def tpr_at_fpr(scores: Vector, is_member: Vector, fpr: float = 0.01, level: float = LEVEL) -> Interval:
    """The share of members above the threshold that `fpr` of the non-members reach; with the threshold's own error.

    Estimate: the threshold is the smallest non-member score reached by at most `fpr` of the non-members (above all of
    them if there is none), and a score at the threshold counts as "member". So ties never lift the false positive rate
    above `fpr`, and the expected rate of the rule is floor(n fpr) / (n + 1), not more than asked for.

    Interval: the number K of non-members above the *true* threshold is Binomial(n, fpr), so that threshold lies between
    the K-th and the (K + 1)-th largest non-member; given it, the rate has Jeffreys' beta distribution. The limits are
    quantiles of these betas mixed over K, with both neighbours for the threshold at equal weight. Members and
    non-members are independent, so nothing is resampled. Ties widen it. It covers 97 to 99 % from 300 records of each
    sort on (a percentile bootstrap 95 to 98 %, a little narrower); Clopper-Pearson around the estimate alone, which
    takes the threshold for known, covers 84 % without a leak.

    Args:
        scores: float [n].
        is_member: bool [n].
        fpr: at least 1 / number of non-members.

    Raises:
        ValueError: `fpr` is below 1 / number of non-members, so no threshold can be told; or as `auc`.
    """
    members, others = _split(scores, is_member)
    estimate = float((members >= threshold_at_fpr(others, fpr)).mean())
    tail = (1 - level) / 2
    count, weight = _tail_counts(members, others, fpr)
    low, high = (_quantile(count, weight, len(members), probability) for probability in (tail, 1 - tail))
    return Interval(estimate, min(low, estimate), max(high, estimate))


def tail_rate_distribution(members: Vector, others: Vector, fpr: float) -> Distribution:
    """The mixture of betas that `tpr_at_fpr` describes; both vectors in rising order."""
    count, weight = _tail_counts(members, others, fpr)
    return lambda p: _distribution(count, weight, len(members), p)


def _tail_counts(members: Vector, others: Vector, fpr: float) -> tuple[Vector, Vector]:
    """How many members may lie above the true threshold, rising, and the weight of each such count."""
    n, m = len(others), len(members)
    k, weight = _thresholds(n, fpr)
    # neighbours[j]: the j-th largest non-member, with +inf for j = 0 and -inf beyond the last
    neighbours = np.concatenate([[np.inf], others[::-1], [-np.inf]])
    at_least = m - np.searchsorted(members, neighbours[k], side="right")
    at_most = m - np.searchsorted(members, neighbours[k + 1], side="left")
    count, place = np.unique(np.concatenate([at_least, at_most]), return_inverse=True)
    return count, np.bincount(place, weight)


def _distribution(count: Vector, weight: Vector, m: int, p: float) -> float:
    return float((weight * scipy.special.betainc(count + 0.5, m - count + 0.5, p)).sum())


@lru_cache
def _thresholds(n: int, fpr: float) -> tuple[Vector, Vector]:
    """How many of n non-members may lie above the true threshold, and the weights of both neighbours of each."""
    k = np.arange(int(scipy.stats.binom.ppf(1e-9, n, fpr)), int(scipy.stats.binom.isf(1e-9, n, fpr)) + 1)
    weight = scipy.stats.binom.pmf(k, n, fpr)
    return k, np.concatenate([weight, weight]) / (2 * weight.sum())


def tpr_change(
    after: Vector,
    before: Vector,
    is_member: Vector,
    fpr: float = 0.01,
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = 2000,
) -> Interval:
    """TPR(after) - TPR(before) at `fpr` of two scores of the same records, by a paired bootstrap.

    Members and non-members are resampled separately, each time with the same records for both scores, and the
    thresholds are found anew (percentile interval, Efron & Tibshirani 1993, chapter 13).

    Args:
        seed: of the resampling; the result follows from it.

    Raises:
        ValueError: as `tpr_at_fpr`.
    """
    after, before, is_member = np.asarray(after, float), np.asarray(before, float), np.asarray(is_member, bool)
    for scores in (after, before):
        _split(scores, is_member)
    difference = tpr_point(after, is_member, fpr) - tpr_point(before, is_member, fpr)
    member_weight, other_weight = _resamples(seed, int(is_member.sum()), int((~is_member).sum()), resamples)
    drawn = [
        _resampled_tpr(scores[is_member], scores[~is_member], member_weight, other_weight, fpr)
        for scores in (after, before)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(drawn[0] - drawn[1], [tail, 1 - tail])
    return Interval(difference, min(float(low), difference), max(float(high), difference))


def _resampled_tpr(members: Vector, others: Vector, member_weight: Vector, other_weight: Vector, fpr: float) -> Vector:
    """`roc.tpr_at_fpr` of each resample, float64 [resamples]; the weights say how often each record was drawn."""
    by_rank = np.argsort(-others, kind="stable")
    falling, most = others[by_rank], allowed(fpr, len(others))
    last = np.searchsorted(-falling, -falling, side="right") - 1  # ties are reached together
    top = 2 * most + 64  # ranks looked at: until every resample has reached more than it may
    while True:
        top = int(last[min(top, len(others)) - 1]) + 1
        reached = np.cumsum(other_weight[:, by_rank[:top]], axis=1)
        if top == len(others) or (reached[:, -1] > most).all():
            break
        top *= 2
    reached = reached[:, last[:top]]
    within = np.where(reached <= most, reached, 0).max(1)
    # the first drawn score at which `within` non-members are reached; above the highest drawn one if that is none
    highest_drawn = falling[np.minimum((reached == 0).sum(1), len(others) - 1)]
    threshold = np.where(
        within > 0,
        falling[np.minimum((reached < within[:, None]).sum(1), len(others) - 1)],
        np.nextafter(highest_drawn, np.inf),
    )
    order = np.argsort(-members, kind="stable")
    above = np.searchsorted(-members[order], -threshold, side="right")
    drawn = np.cumsum(member_weight[:, order[: max(1, int(above.max()))]], axis=1)
    hits = np.where(above > 0, drawn[np.arange(len(drawn)), np.maximum(above - 1, 0)], 0)
    return np.asarray(hits / len(members))


def _split(scores: Vector, is_member: Vector) -> tuple[Vector, Vector]:
    """Members' and non-members' scores, float64, each in rising order."""
    scores, is_member = np.asarray(scores, dtype=float), np.asarray(is_member, dtype=bool)
    if scores.shape != is_member.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError("scores must be finite, one per record")
    members, others = np.sort(scores[is_member]), np.sort(scores[~is_member])
    if min(len(members), len(others)) < 2:
        raise ValueError("at least two members and two non-members are needed")
    return members, others


def _quantile(count: Vector, weight: Vector, m: int, probability: float) -> float:
    """Where the mixture reaches `probability`: between the quantiles of its first beta and of its last."""
    return _reached(count.astype(np.int64).tobytes(), weight.tobytes(), m, probability)


@lru_cache(2**12)  # an audit asks again for many of its rows: in the next round, and when it is checked
def _reached(counts: bytes, weights: bytes, m: int, probability: float) -> float:
    count, weight = np.frombuffer(counts, np.int64), np.frombuffer(weights)
    ends = count[[0, -1]]
    low, high = map(float, scipy.special.betaincinv(ends + 0.5, m - ends + 0.5, probability))

    def beyond(p: float) -> float:
        return _distribution(count, weight, m, p) - probability

    if beyond(low) >= 0:  # one beta alone, or as good as alone
        return low
    return high if beyond(high) <= 0 else float(scipy.optimize.brentq(beyond, low, high))


def _resamples(seed: int, members: int, others: int, resamples: int) -> tuple[Vector, Vector]:
    """The weights of members and of non-members: an audit compares many scores of the same records."""
    key = f"{seed} {members} {others} {resamples}"
    if (known := _drawn.get(key)) is not None:
        return known
    rng = np.random.default_rng(seed)
    weights = _resample(rng, members, resamples), _resample(rng, others, resamples)
    _drawn.put(key, weights, sum(one.nbytes for one in weights))
    return weights


def _resample(rng: np.random.Generator, n: int, resamples: int) -> Vector:
    """How often each of n records is drawn in each of the bootstrap's resamples, int32 [resamples, n]."""
    weights = np.empty((resamples, n), dtype=np.int32)
    for first in range(0, resamples, 50):  # a few at a time, or the draws take ten times the memory of the counts
        part = weights[first : first + 50]
        draws = rng.integers(0, n, size=part.shape) + n * np.arange(len(part))[:, None]
        part[:] = np.bincount(draws.ravel(), minlength=part.size).reshape(part.shape)
    return weights


def _placements(scores: Vector, is_member: Vector) -> tuple[Vector, Vector]:
    _split(scores, is_member)
    return placements(np.asarray(scores, dtype=float), np.asarray(is_member, dtype=bool))
