"""Privacy Meter's published scoring of RMIA, for `membership.py`: what it computes, written anew from its source."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def privacy_meter_rmia(target: Array, shadows: Array, inside: Array, target_z: Array, shadows_z: Array) -> Array:
    """Scores float64 [n] as `modules/mia/attacks/rmia.py` of privacytrustlab/ml_privacy_meter gives, gamma 1.

    Offline: only shadows without x count, half of all (so many of the population's are taken, the largest ones); its
    coefficient a is the one of 0, .1, ..., 1 that has the best AUC on the complement of the first shadow, with two
    reference models.

    Args:
        target: probabilities of the labels [n]; shadows: [k, n]; inside: bool [k, n]; `_z`: of m population records.
    """
    others = slice(2, 4)
    merits = {}
    for a in np.arange(0, 1.1, 0.1):
        tried = _counts(shadows[1], shadows[others], inside[others], shadows_z[1], shadows_z[others], float(a), 1)
        members, rest = tried[inside[1]], np.sort(tried[~inside[1]])
        below = np.searchsorted(rest, members, "left") + np.searchsorted(rest, members, "right")
        merits[float(a)] = float(below.mean()) / 2
    return _counts(target, shadows, inside, target_z, shadows_z, max(merits, key=lambda one: merits[one]), None)


def _counts(
    target: Array, shadows: Array, inside: Array, target_z: Array, shadows_z: Array, a: float, references: int | None
) -> Array:
    count = max(len(shadows) // 2, 1) if references is None else references
    out = shadows * ~inside
    if count > 1:
        out = -np.sort(-out, axis=0)[:count]
        out_z = -np.sort(-shadows_z, axis=0)[:count]
    else:
        out, out_z = out + ((shadows + a - 1) / a if a else (shadows - 0.7) / 0.3) * inside, shadows_z
    ratio = target / ((1 + a) / 2 * out.mean(0) + (1 - a) / 2)
    ratio_z = np.sort(target_z / ((1 + a) / 2 * out_z.mean(0) + (1 - a) / 2))
    result: Array = np.searchsorted(ratio_z, ratio, "left") / len(ratio_z)
    return result
