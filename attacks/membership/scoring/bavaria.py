"""BaVarIA: a record's margins with and without it in training, with priors that all records together give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from ..case import TINY, ShadowSignals, every, sums

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

WIDEST = 3.0  # standard deviations: beyond it a trend stays as it is, lest a few far records bend it
# Standard errors by which records must differ in their variances and gaps before they count as different: what passes
# for a difference with few shadows is mostly noise, and a score built on it is noisier than one without.
BEYOND_CHANCE = 2.0
MEDIAN_ERROR = 2.3  # root n times the standard error of the median of n squared normal numbers, as a share of it
# Degrees of freedom of a variance common to all records: one or two shadows of a sort say next to nothing of a
# record's own, and the records' differ.
COMMON = 4.0


@dataclass(frozen=True)
class Side:
    """The shadows with the record, or those without; float64 [t, n] each.

    Args:
        count: how many.
        mean: of their margins.
        df, variance: of one such margin around its mean, after shrinkage.
    """

    count: Floats
    mean: Floats
    df: Floats
    variance: Floats


def log_ratio(phi: Floats, signals: ShadowSignals, keep: Bools | None = None) -> Floats:
    """log p(phi | record inside) - log p(phi | outside), each a predictive Student t; float64 [t, n].

    BaVarIA (2026, arXiv:2603.11799) puts normal-inverse-gamma priors on a record's mean and variance, which makes LiRA
    of it with many shadow models and little more than RMIA's one mean per record with few. Here the priors' parameters
    are found from all records (empirical Bayes). Variances: inverse gamma around a line over what the shadows of the
    other sort say of the record, so that an easy record gets an easy record's and no number is used twice (Smyth 2004,
    with a trend). Means: their average is the record's own; their difference, what membership does to the margin, is
    normal around a curve over that average, and as far apart between records as exceeds what the shadows' number
    explains.

    Args:
        phi: [t, n], the targets' margins.
        keep: bool [t, k], the shadows each target may be compared with; None: all. A record without a shadow of either
            sort among them scores 0.
    """
    keep = every(phi, signals) if keep is None else keep
    shadow = signals.phi.astype(np.float64)
    centre = shadow.mean(0)  # sums of squares keep their digits around it
    sides = [sums(shadow - centre, side, keep) for side in (signals.inside, ~signals.inside)]
    known = (sides[0][0] >= 1) & (sides[1][0] >= 1)
    inside, outside = _fitted(sides, centre, known)
    precise, precise_without = inside.count / inside.variance, outside.count / outside.variance
    total = precise + precise_without
    average = (precise * inside.mean + precise_without * outside.mean) / total
    apart, chance = inside.mean - outside.mean, 1 / precise + 1 / precise_without
    expected = trend(average, apart, known, bent=True)
    own = _share(apart - expected, chance, np.minimum(inside.df, outside.df), known)
    gap, unsure = expected + own * (apart - expected), own * chance
    target = phi.astype(np.float64)
    likelihoods = []
    for side, part in ((inside, precise_without / total), (outside, -precise / total)):
        scale2 = side.variance + 1 / total + part**2 * unsure
        likelihoods.append(log_student(target, side.df, average + part * gap, scale2))
    result: Floats = np.where(known, likelihoods[0] - likelihoods[1], 0.0)
    return result


def _fitted(sides: list[tuple[Floats, Floats, Floats]], centre: Floats, known: Bools) -> list[Side]:
    means = [centre + mean for _, mean, _ in sides]
    found = []
    for (count, _, squares), mean, other in zip(sides, means, means[::-1], strict=True):
        freedom = np.maximum(count - 1, 0)
        shown = known & (freedom >= 1)
        if ((known & (freedom >= 2)).sum(1) < known.sum(1) / 2).any():  # a common variance, as the means lie apart
            apart = count * (mean - trend(other, mean, known)) ** 2  # half of it is the record's, half the trend's
            variance = np.maximum(_mean(apart, known) / 2, TINY) * np.ones_like(mean)
            found.append(Side(np.maximum(count, 1), mean, np.full_like(mean, COMMON), variance))
            continue
        prior_df, prior = shrinkage(squares, freedom, other, shown)
        df = freedom + prior_df
        variance = (np.where(freedom >= 1, squares, 0.0) + prior_df * prior) / df
        found.append(Side(np.maximum(count, 1), mean, df, np.maximum(variance, TINY)))
    return found


def shrinkage(squares: Floats, freedom: Floats, x: Floats, shown: Bools) -> tuple[Floats, Floats]:
    """The variances' common prior: its degrees of freedom [t, 1] and its variance over x [t, n].

    Smyth (2004, section 6.2), "Linear models and empirical Bayes methods for assessing differential expression": the
    log of a sample variance with d degrees of freedom under a scaled inverse chi-square prior with d0 has variance
    trigamma(d / 2) + trigamma(d0 / 2), which is solved for d0.

    Args:
        squares, freedom: [t, n], sums of squares and their degrees of freedom.
        shown: bool [t, n], the records whose variance counts; the others' freedom may be 0.
    """
    some = np.maximum(freedom, 1)
    logs = np.log(squares / some) - scipy.special.digamma(some / 2) + np.log(some / 2)
    usual = trend(x, logs, shown)
    off = (logs - usual) ** 2
    count = shown.sum(1, keepdims=True)
    spread, mean = _mean(off, shown) * count / (count - 2), _mean(off, shown)
    error = np.sqrt(_mean((off - mean) ** 2, shown) / count)
    excess = spread - _mean(scipy.special.polygamma(1, some / 2), shown) - BEYOND_CHANCE * error
    d0 = np.minimum(2 * trigamma_inverse(np.maximum(excess, 1e-3)), 1e3)
    return d0, np.exp(usual + scipy.special.digamma(d0 / 2) - np.log(d0 / 2))


def _share(off: Floats, chance: Floats, df: Floats, known: Bools) -> Floats:
    """Which share of a record's distance from the trend is its own, not chance, [t, 1]; by medians, as a few records
    that were memorised lie far off.
    """
    count = np.maximum(known.sum(1, keepdims=True), 1)
    by_chance = scipy.special.fdtri(1, _median(df, known), 0.5)
    ratio = _median(off**2 / chance, known) / by_chance - 1 - BEYOND_CHANCE * MEDIAN_ERROR / np.sqrt(count)
    between = np.maximum(ratio, 0.0)
    # Squared: part of the distance is the curve's own error, and noise in a gap costs more power than one drawn in too
    # far (with 4 shadows on Location-30 and digits 4 to 18 % more are found).
    share: Floats = (between / (between + 1)) ** 2
    return share


def _median(values: Floats, known: Bools) -> Floats:
    """Over the records known, [t, 1]; 1 where none is."""
    medians = [np.median(row[some]) if some.any() else 1.0 for row, some in zip(values, known, strict=True)]
    return np.array(medians)[:, None]


def trend(x: Floats, y: Floats, shown: Bools, *, bent: bool = False) -> Floats:
    """The line of y over margins x by least squares over the records shown, at every x; all [t, n].

    Args:
        bent: a parabola and a multiple of 1 - p: the pull of a record in training is its 1 - p, next to none where a
            model is sure of it anyway.
    """
    weight = shown.astype(float)
    middle = _mean(x, shown)
    scale = np.sqrt(np.maximum(_mean((x - middle) ** 2, shown), TINY))
    z = np.clip((x - middle) / scale, -WIDEST, WIDEST)
    shapes = [np.ones_like(z), z, *((z**2, scipy.special.expit(-x)) if bent else ())]
    basis = np.stack(shapes, axis=-1)
    weighted = basis * weight[..., None]
    # The least bit of a ridge: without spread in x they are one another's multiples.
    gram = np.einsum("tnp,tnq->tpq", weighted, basis) + 1e-9 * x.shape[1] * np.eye(len(shapes))
    found = np.linalg.solve(gram, np.einsum("tnp,tn->tp", weighted, y)[..., None])
    result: Floats = np.einsum("tnp,tp->tn", basis, found[..., 0])
    return result


def _mean(values: Floats, shown: Bools) -> Floats:
    """Over the records shown, [t, 1]; 0 where none is."""
    mean: Floats = (values * shown).sum(1, keepdims=True) / np.maximum(shown.sum(1, keepdims=True), 1)
    return mean


def log_student(x: Floats, df: Floats, location: Floats, scale2: Floats) -> Floats:
    """The log density of Student's t with `df` degrees of freedom, a location and a squared scale."""
    density: Floats = (
        scipy.special.gammaln((df + 1) / 2)
        - scipy.special.gammaln(df / 2)
        - 0.5 * np.log(df * np.pi * scale2)
        - (df + 1) / 2 * np.log1p((x - location) ** 2 / scale2 / df)
    )
    return density


def trigamma_inverse(x: Floats) -> Floats:
    """y with trigamma(y) = x, for x > 0, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    y = 0.5 + 1 / x
    for _ in range(20):
        value = scipy.special.polygamma(1, y)
        y = y + value * (1 - value / x) / scipy.special.polygamma(2, y)
    result: Floats = y
    return result
