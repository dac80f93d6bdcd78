"""Several margins of one record, from versions of one model, weighed together against shadows that have them all."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from ..measurement import Bools
from ..membership.scoring.bavaria import shrinkage

RIDGE = 0.3  # of the correlation, towards none: versions that hardly differ would else be told apart by noise

Floats = np.ndarray[Any, np.dtype[np.float64]]


def joint(phi: Floats, shadows: np.ndarray[Any, np.dtype[np.floating[Any]]], inside: Bools, keep: Bools) -> Floats:
    """log p(margins of all versions | record inside) - log p(... | outside), float64 [t, n].

    LiRA of m versions at once: per record and side a multivariate Student t, whose means are the record's own, whose
    variances are shrunk towards a version's common one (`membership.bavaria.shrinkage`), and whose correlation of the
    versions is that of all records together: 8 shadows to a side tell no matrix of their own.

    Args:
        phi: [t, m, n], margins of t targets under each of m versions.
        shadows: [k, m, n], of each shadow under the same versions.
        inside: bool [k, n], who was trained on what.
        keep: bool [t, k], the shadows each target may be compared with; fewer than 2 on a side score 0.
    """
    k, m, n = shadows.shape
    centre = shadows.mean(0, dtype=np.float64)
    target, shadow = phi.astype(np.float64) - centre, shadows.astype(np.float64) - centre
    chosen = keep.astype(np.float64)
    inverse, determinant = _correlation(shadow, inside)
    found = []
    for side in (inside, ~inside):
        weight = side.astype(np.float64)[:, None, :]
        count = (chosen @ weight.reshape(k, n))[:, None, :]
        enough, held = count[:, 0] >= 2, np.maximum(count, 2)
        mean = (chosen @ (weight * shadow).reshape(k, m * n)).reshape(-1, m, n) / held
        squares = (chosen @ (weight * shadow**2).reshape(k, m * n)).reshape(-1, m, n) - held * mean**2
        freedom, squares = held - 1, np.maximum(squares, 1e-12)
        flat, every = np.zeros_like(held[:, 0]), np.ones_like(held[:, 0], dtype=bool)
        priors = [shrinkage(squares[:, version], freedom[:, 0], flat, every) for version in range(m)]
        prior_freedom = np.stack([one for one, _ in priors], 1)
        prior_variance = np.stack([one for _, one in priors], 1)
        df = freedom + prior_freedom
        scale2 = (squares + prior_freedom * prior_variance) / df * (1 + 1 / held)
        z = (target - mean) / np.sqrt(scale2)
        distance = np.einsum("tan,ab,tbn->tn", z, inverse, z)
        df = df.mean(1)
        log_t = (
            scipy.special.gammaln((df + m) / 2)
            - scipy.special.gammaln(df / 2)
            - m / 2 * np.log(df * np.pi)
            - (np.log(scale2).sum(1) + determinant) / 2
            - (df + m) / 2 * np.log1p(distance / df)
        )
        found.append(np.where(enough, log_t, 0.0))
    difference: Floats = found[0] - found[1]
    return difference


def _correlation(shadow: Floats, inside: Bools) -> tuple[Floats, float]:
    """Of the versions of a model, around a record's mean of the same side: its inverse [m, m], log determinant."""
    rest = np.empty_like(shadow)
    for side in (inside, ~inside):
        weight = side.astype(np.float64)[:, None, :]
        mean = (weight * shadow).sum(0) / np.maximum(weight.sum(0), 1)
        rest = np.where(weight > 0, shadow - mean, rest)
    rest = rest / np.maximum(rest.std(0), 1e-12)  # a record whose margins vary widely has no more to say than others
    flat = rest.transpose(1, 0, 2).reshape(shadow.shape[1], -1)
    correlation = (1 - RIDGE) * np.corrcoef(flat).reshape(len(flat), len(flat)).clip(-1, 1) + RIDGE * np.eye(len(flat))
    return np.linalg.inv(correlation), float(np.linalg.slogdet(correlation)[1])
