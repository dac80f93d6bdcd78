"""Membership scores from phi: higher means "more likely a member". Shadows are summed by masks, never record by record.

Every score is computed for several targets at once ([t, n]): for the audited model with all shadows, or for shadows as
pseudo-targets, each without itself and its complement. `WITH_SHADOWS` names those that need shadows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from ...statistics.roc import area
from ..case import ShadowSignals, every, related, sums
from .bavaria import log_ratio

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Margins = np.ndarray[Any, np.dtype[np.floating[Any]]]
Labels = np.ndarray[Any, np.dtype[np.int64]]
Score = Callable[[Floats, ShadowSignals, Bools | None], Floats]

PRIOR_RECORDS = 5  # how many records of a class the figures over all classes count for
TRIED = 16  # shadows as pseudo-targets: for two weights the records of so many are plenty
MOVED = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
# What `_weights` are with two or three shadows, which cannot say. In proportion about the middle of what they come to
# with two on Location-30 and digits: a record's gap is mostly noise, and RMIA's one number is worth more. In size half
# of that: of 15 nets 3 had log odds too sure of themselves by a factor of 2 to 8.
WITH_A_PAIR = (0.0, 0.35, 1.0)
OWN_VARIANCE = 64  # shadows: from so many on LiRA takes each record's own variance, as its authors do


def loss(phi: Margins) -> Floats:
    """LOSS (Yeom et al. 2018): a record the model finds easy is a member. phi falls monotonically with the loss."""
    return phi.astype(np.float64)


def population(phi: Margins, y: Labels, known_phi: Margins, known_y: Labels) -> Floats:
    """How far a record's margin lies above those of non-members of its class, in their standard deviations; [n].

    The population attack (Ye et al. 2022, arXiv:2111.09679, "attack P", by class): what an attacker without shadow
    models can do with records of its own. A class of which it owns few is shrunk towards all of them.

    Args:
        phi, y: [n], margins and labels of the attacked records.
        known_phi, known_y: [m], of the attacker's own records, which the model was not trained on.
    """
    known = known_phi.astype(np.float64)
    mean, spread = known.mean(), max(float(known.std()), 1e-6)
    result: Floats = np.empty(len(phi))
    for label in np.unique(y):
        own = known[known_y == label]
        weight = len(own) / (len(own) + PRIOR_RECORDS)
        centre = weight * (own.mean() if len(own) else 0.0) + (1 - weight) * mean
        variance = weight * (own.var() if len(own) else 0.0) + (1 - weight) * spread**2
        chosen = y == label
        result[chosen] = (phi[chosen].astype(np.float64) - centre) / max(float(np.sqrt(variance)), 1e-6)
    return result


def calibrated(phi: Floats, signals: ShadowSignals, keep: Bools | None = None) -> Floats:
    """The calibrated loss (Watson et al. 2022, arXiv:2111.08440): how much lower it is than that of models trained
    without the record; float64 [t, n], in nats.

    Args:
        phi: [t, n], the targets' margins.
        keep: bool [t, k], the shadows each target may be compared with; None: all.
    """
    keep = every(phi, signals) if keep is None else keep
    count, mean, _ = sums(_log_probability(signals.phi), ~signals.inside, keep)
    difference: Floats = np.where(count >= 1, _log_probability(phi) - mean, 0.0)
    return difference


def rmia(phi: Floats, signals: ShadowSignals, keep: Bools | None = None) -> Floats:
    """The logarithm of RMIA's likelihood ratio, log p(x | target) - log mean p(x | shadows), float64 [t, n].

    RMIA (Zarifzadeh et al. 2024, "Low-cost high-power membership inference attacks") scores the share of population
    records z with ratio(x) / ratio(z) above gamma. With gamma and z fixed that is a monotone step function of ratio(x),
    so the ratio itself ranks the records the same way without its ties. The mean is of two means, over the shadows with
    x and over those without, so that their numbers tell nothing: with an odd number of shadows they differ by one, and
    of one shadow there is one alone (see `_completed`). It is moved towards 1 as the authors' coefficient `a` moves it
    (section 3.3): where members are remembered whole, a record's difficulty says less than the ratio takes it for. How
    far is what ranks the shadows best.

    Args:
        phi: [t, n], the targets' margins.
        keep: bool [t, k], the shadows each target may be compared with; None: all.
    """
    means = _mean_probabilities(signals, every(phi, signals) if keep is None else keep)
    return _log_probability(phi) - _reference(*means, towards_one(signals))


@lru_cache(maxsize=4)  # every score of a population asks for it
def towards_one(signals: ShadowSignals) -> float:
    """The share in [0, 1) by which RMIA's mean probabilities are moved towards 1: of `MOVED` the one with the best mean
    AUC on shadows, each as a pseudo-target of the others; 0 where leaving a pair out leaves no pair.
    """
    keep = ~related(signals.inside[:TRIED], signals.inside)
    if (keep.sum(1) < 2).any():
        return 0.0
    mine, means = _log_probability(signals.phi[:TRIED]), _mean_probabilities(signals, keep)

    def merit(share: float) -> float:
        ratios = mine - _reference(*means, share)
        return float(np.mean([area(*one) for one in zip(ratios, signals.inside[:TRIED], strict=True)]))

    return max(MOVED, key=merit)


def _mean_probabilities(signals: ShadowSignals, keep: Bools) -> tuple[Floats, Floats]:
    """Of the label and of any other class, over the shadows kept, [t, n] each: near 0 either has the other's digits."""
    shadow, chosen = signals.phi.astype(np.float64), keep.astype(float)
    counts = [chosen @ side.astype(float) for side in (signals.inside, ~signals.inside)]
    means = []
    for sign in (1, -1):
        chance = scipy.special.expit(sign * shadow)
        inside, outside = (
            chosen @ (side * chance) / np.maximum(count, 1)
            for side, count in zip((signals.inside, ~signals.inside), counts, strict=True)
        )
        for row in np.flatnonzero((counts[0] * counts[1] == 0).any(1)):
            has, lacks = (count[row] > 0 for count in counts)
            inside[row], outside[row] = (
                _completed(inside[row], has, outside[row], lacks),
                _completed(outside[row], lacks, inside[row], has),
            )
        means.append((inside + outside) / 2)
    return means[0], means[1]


def _completed(mean: Floats, known: Bools, other: Floats, other_known: Bools) -> Floats:
    """The means over the shadows of one sort, [n]; where a record has none, that of a record of equal rank.

    Whether a shadow was trained on a record is drawn at random, so those that it was trained on rank among themselves
    as the others do. (With one shadow, on 15 nets of five data sets, 42 % more members are found at 1 % false positives
    than with the one mean that there is; at worst .7 % fewer.)

    Args:
        mean, known: over these shadows, and which records have any.
        other, other_known: the same of the other sort.
    """
    if known.all():
        return mean
    if not known.any():  # too few records for both sorts
        return other
    ranked = np.sort(other[other_known])
    place = (np.searchsorted(ranked, other, "left") + np.searchsorted(ranked, other, "right")) / (2 * len(ranked))
    completed: Floats = np.where(known, mean, np.quantile(mean[known], np.clip(place, 0, 1)))
    return completed


def _reference(likely: Floats, unlikely: Floats, share: float) -> Floats:
    """The logarithm of the mean probabilities of the labels, moved towards 1 by `share`."""
    likely, unlikely = (1 - share) * likely + share, (1 - share) * unlikely
    small = likely < 0.5
    least = np.maximum(likely, np.finfo(np.float64).tiny)  # margins of a mask alone may go below -1000
    reference: Floats = np.where(small, np.log(np.where(small, least, 1.0)), np.log1p(-np.where(small, 0.0, unlikely)))
    return reference


def bavaria(phi: Floats, signals: ShadowSignals, keep: Bools | None = None) -> Floats:
    """The log odds of membership by `log_ratio` and RMIA's ratio together, float64 [t, n]: a logistic regression on the
    shadows' own memberships, each as a pseudo-target of the others, says how much either is worth.

    Both are log likelihood ratios of one exponential family (Brännvall 2026, arXiv:2603.11799): `log_ratio` has a mean
    and a variance for each record with and without it in training, the ratio one number for both, which is less, but
    is known better. The first's odds are too sure of themselves where a record's gap is mostly noise (digits: 5.9 in
    logarithm where 2.4 come true); weighed, they are what the shadows' memberships bear out.

    Args:
        phi: [t, n], the targets' margins.
        keep: bool [t, k], the shadows each target may be compared with; None: all. A record without a shadow of either
            sort among them scores 0.
    """
    keep = every(phi, signals) if keep is None else keep
    chosen = keep.astype(float)
    inside = chosen @ signals.inside
    known = (inside >= 1) & (chosen.sum(1, keepdims=True) - inside >= 1)
    if not known.any():
        return np.zeros(phi.shape)
    parts = log_ratio(phi, signals, keep), rmia(phi, signals, keep)
    start, *weights = _weights(signals)
    weighed = sum((weight * part for weight, part in zip(weights, parts, strict=True)), np.full(phi.shape, start))
    result: Floats = np.where(known, weighed, 0.0)
    return result


def _weights(signals: ShadowSignals) -> tuple[float, float, float]:
    """A constant, and what `log_ratio` and RMIA's ratio are worth, of the log odds of the shadows' memberships.

    `WITH_A_PAIR` where leaving a pair out leaves no pair. No weight is below 0: either is evidence, if of anything.
    """
    from sklearn.linear_model import LogisticRegression

    keep = ~related(signals.inside[:TRIED], signals.inside)
    if (keep.sum(1) < 2).any():
        return WITH_A_PAIR
    phi, truth = signals.phi[:TRIED].astype(np.float64), signals.inside[:TRIED].ravel()
    parts = np.stack([score(phi, signals, keep).ravel() for score in (log_ratio, rmia)], axis=1)
    scale = np.maximum(np.sqrt((parts**2).mean(0)), 1e-12)
    weights, used = np.zeros(2), [0, 1]
    while used:  # a ridge of one record's worth: parts may be one another's multiples, or tell without an error
        fitted = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8).fit(parts[:, used] / scale[used], truth)
        weights[:] = 0.0
        weights[used] = fitted.coef_[0] / scale[used]
        if (weights >= 0).all():
            return float(fitted.intercept_[0]), float(weights[0]), float(weights[1])
        used = [one for one in used if weights[one] >= 0]
    return 0.0, 1.0, 0.0


def lira(phi: Floats, signals: ShadowSignals, keep: Bools | None = None) -> Floats:
    """LiRA, online (Carlini et al. 2022): log p(phi | record inside) - log p(phi | outside), float64 [t, n].

    Per record, a Gaussian for the margins of the shadows with the record and one for those without. Below
    `OWN_VARIANCE` shadows the variances are fixed: one inside and one outside, common to all records.

    Args:
        phi: [t, n], the targets' margins.
        keep: bool [t, k], the shadows each target may be compared with; None: all. A record with fewer than 2
            of either sort among them scores 0.
    """
    apart, variance, inside = _standing(phi, signals, keep, signals.inside)
    apart_without, variance_without, outside = _standing(phi, signals, keep, ~signals.inside)
    likely, unlikely = (
        -0.5 * (np.log(wide) + distance**2 / wide)
        for distance, wide in ((apart, variance), (apart_without, variance_without))
    )
    difference: Floats = np.where(inside & outside, likely - unlikely, 0.0)
    return difference


def lira_offline(phi: Floats, signals: ShadowSignals, keep: Bools | None = None) -> Floats:
    """LiRA, offline (Carlini et al. 2022): how far the margin lies above those of models trained without the record, in
    their standard deviations; float64 [t, n]. It ranks as P(margin outside < phi). Arguments and variance as `lira`.
    """
    apart, variance, enough = _standing(phi, signals, keep, ~signals.inside)
    score: Floats = np.where(enough, apart / np.sqrt(variance), 0.0)
    return score


WITH_SHADOWS: dict[str, Score] = {
    "bavaria": bavaria,
    "calibrated": calibrated,
    "lira": lira,
    "lira-offline": lira_offline,
    "rmia": rmia,
}
"""By name: each takes phi [t, n], the signals and which shadows each target may be compared with, bool [t, k]."""


WITH_ONE = ("rmia",)  # of these, what one shadow gives: the others need two, one with each record and one without


def _standing(phi: Floats, signals: ShadowSignals, keep: Bools | None, side: Bools) -> tuple[Floats, Floats, Bools]:
    """How far the targets lie from the mean of the shadows of one side, the variance, and whether 2 show it; [t, n]."""
    keep = every(phi, signals) if keep is None else keep
    shadow = signals.phi.astype(np.float64)
    centre = shadow.mean(0)  # sums of squares keep their digits around it
    count, mean, squares = sums(shadow - centre, side, keep)
    enough = count >= 2
    if len(shadow) < OWN_VARIANCE:
        total = (squares * enough).sum(1, keepdims=True)
        variance = total / np.maximum(((count - 1) * enough).sum(1, keepdims=True), 1)
    else:
        variance = squares / np.maximum(count - 1, 1)
    return phi.astype(np.float64) - centre - mean, np.maximum(variance, 1e-12), enough


def _log_probability(phi: Margins) -> Floats:
    """log p of the label, from its logit."""
    result: Floats = -np.logaddexp(0.0, -phi.astype(np.float64))
    return result
