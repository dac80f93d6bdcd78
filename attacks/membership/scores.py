"""Membership scores from phi: higher means "more likely a member". Shadows are summed by masks, never record by record.

Every score is computed for several targets at once ([t, n]): for the audited model with all shadows, or for shadows as
pseudo-targets, each without itself and its complement.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from .case import ShadowSignals

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Margins = np.ndarray[Any, np.dtype[np.floating[Any]]]
Labels = np.ndarray[Any, np.dtype[np.int64]]

PRIOR_RECORDS = 5  # how many records of a class the figures over all classes count for


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


def rmia(phi: Floats, signals: ShadowSignals, keep: Bools | None = None) -> Floats:
    """The logarithm of RMIA's likelihood ratio, log p(x | target) - log mean p(x | shadows), float64 [t, n].

    RMIA (Zarifzadeh et al. 2024, "Low-cost high-power membership inference attacks") scores the share of population
    records z with ratio(x) / ratio(z) above gamma. With gamma and z fixed that is a monotone step function of ratio(x),
    so the ratio itself ranks the records the same way without its ties. The mean runs over shadows with and without x.

    Args:
        phi: [t, n], the targets' margins.
        keep: bool [t, k], the shadows each target may be compared with; None: all.
    """
    chosen = _all(phi, signals) if keep is None else keep
    shadow = signals.phi.astype(np.float64)
    count = chosen.sum(1, keepdims=True)
    likely = np.einsum("tk,kn->tn", chosen.astype(float), scipy.special.expit(shadow)) / count
    unlikely = np.einsum("tk,kn->tn", chosen.astype(float), scipy.special.expit(-shadow)) / count
    # Each form keeps its digits where the other loses them: p near 0, and p near 1 (most records).
    small = likely < 0.5
    reference = np.where(small, np.log(np.where(small, likely, 1.0)), np.log1p(-np.where(small, 0.0, unlikely)))
    mine: Floats = -np.logaddexp(0.0, -phi.astype(np.float64)) - reference
    return mine


def lira(phi: Floats, signals: ShadowSignals, keep: Bools | None = None) -> Floats:
    """LiRA, online (Carlini et al. 2022): log p(phi | record inside) - log p(phi | outside), float64 [t, n].

    Per record, a Gaussian with unknown mean and variance is fitted to the margins of the shadows with the record and
    one to those without. The variances are shrunk towards a common one by the empirical Bayes of Smyth (2004), so each
    likelihood is the predictive Student t. With few shadows this is LiRA's fixed variance, with many its own variance
    per record; no switch is needed.

    Args:
        phi: [t, n], the targets' margins.
        keep: bool [t, k], the shadows each target may be compared with; None: all. At least 2 with and 2 without each
            record, else the score is 0.
    """
    chosen = (_all(phi, signals) if keep is None else keep).astype(float)
    shadow = signals.phi.astype(np.float64)
    centre = shadow.mean(0)  # sums of squares keep their digits around it
    target = phi.astype(np.float64) - centre
    inside = _log_predictive(target, shadow - centre, signals.inside, chosen)
    outside = _log_predictive(target, shadow - centre, ~signals.inside, chosen)
    difference: Floats = inside - outside
    return difference


def _log_predictive(target: Floats, shadow: Floats, side: Bools, chosen: Floats) -> Floats:
    weight = side.astype(float)
    count = np.einsum("tk,kn->tn", chosen, weight)
    enough = count >= 2
    count = np.maximum(count, 2)
    mean = np.einsum("tk,kn->tn", chosen, weight * shadow) / count
    squares = np.einsum("tk,kn->tn", chosen, weight * shadow**2) - count * mean**2
    freedom = count - 1
    variance = np.maximum(squares, 1e-12) / freedom
    prior_freedom, prior_variance = shrinkage(variance, freedom)
    df = freedom + prior_freedom
    scale2 = (freedom * variance + prior_freedom * prior_variance) / df * (1 + 1 / count)
    z2 = (target - mean) ** 2 / scale2
    log_t = (
        scipy.special.gammaln((df + 1) / 2)
        - scipy.special.gammaln(df / 2)
        - 0.5 * np.log(df * np.pi * scale2)
        - (df + 1) / 2 * np.log1p(z2 / df)
    )
    result: Floats = np.where(enough, log_t, 0.0)
    return result


def shrinkage(variance: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """The prior's degrees of freedom and variance, [t, 1] each, from many sample variances [t, n] (Smyth 2004, 6.2).

    Smyth, "Linear models and empirical Bayes methods for assessing differential expression": the log of a sample
    variance with d degrees of freedom under a scaled inverse chi-square prior with d0 has variance
    trigamma(d / 2) + trigamma(d0 / 2), which is solved for d0.
    """
    e = np.log(variance) - scipy.special.digamma(freedom / 2) + np.log(freedom / 2)
    mean = e.mean(1, keepdims=True)
    spread = e.var(1, ddof=1, keepdims=True) - scipy.special.polygamma(1, freedom / 2).mean(1, keepdims=True)
    d0 = np.minimum(2 * trigamma_inverse(np.maximum(spread, 1e-3)), 1e3)
    return d0, np.exp(mean + scipy.special.digamma(d0 / 2) - np.log(d0 / 2))


def trigamma_inverse(x: Floats) -> Floats:
    """y with trigamma(y) = x, for x > 0, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    y = 0.5 + 1 / x
    for _ in range(20):
        value = scipy.special.polygamma(1, y)
        y = y + value * (1 - value / x) / scipy.special.polygamma(2, y)
    result: Floats = y
    return result


def _all(phi: Floats, signals: ShadowSignals) -> Bools:
    return np.ones((len(phi), len(signals.phi)), dtype=bool)
