"""Points of the ROC curve of membership scores, without their errors (`ranking` adds them)."""

from __future__ import annotations

from typing import Any

import numpy as np

Vector = np.ndarray[Any, np.dtype[Any]]


def allowed(fpr: float, non_members: int) -> int:
    """False positives allowed; 1 % of 600 is 6, whatever binary floating point says.

    Raises:
        ValueError: `fpr` is below 1 / non_members (no threshold can be told) or not within (0, 1).
    """
    if not 0 < fpr < 1:
        raise ValueError(f"{fpr} is not a false positive rate")
    count = int(np.floor(fpr * non_members + 1e-9))
    if count < 1:
        raise ValueError(
            f"a false positive rate of {fpr:g} cannot be told from {non_members} non-members; it takes {1 / fpr:.0f}"
        )
    return count


def threshold_at_fpr(non_members: Vector, fpr: float) -> float:
    """The smallest non-member score that at most `fpr` of the non-members reach; just above all if there is none.

    A score at the threshold counts as "member". Ties so never lift the rate above `fpr`, and without ties the rule's
    expected false positive rate is floor(n fpr) / (n + 1).

    Args:
        non_members: float [n], in any order.

    Raises:
        ValueError: as `allowed`.
    """
    falling = -np.sort(-np.asarray(non_members, dtype=float))
    count = allowed(fpr, len(falling))
    reached = np.searchsorted(-falling, -falling, side="right")
    within = np.flatnonzero(reached <= count)
    return float(falling[within[-1]] if len(within) else np.nextafter(falling[0], np.inf))


def tpr_at_fpr(scores: Vector, is_member: Vector, fpr: float) -> float:
    """The share of members at or above `threshold_at_fpr`, for scores float [n] and is_member bool [n].

    Raises:
        ValueError: as `allowed`.
    """
    return float((scores[is_member] >= threshold_at_fpr(scores[~is_member], fpr)).mean())


def placements(scores: Vector, is_member: Vector) -> tuple[Vector, Vector]:
    """Per member, the share of non-members it beats; per non-member, the share of members that beat it; ties half.

    The mean of either is the AUC; they are DeLong's structural components, by ranks (Sun & Xu 2014).
    """
    members, others = scores[is_member], scores[~is_member]
    return _below(members, others) / len(others), 1 - _below(others, members) / len(members)


def area(scores: Vector, is_member: Vector) -> float:
    """The AUC: the mean share of non-members that a member beats, ties half."""
    return float(_below(scores[is_member], scores[~is_member]).mean()) / int((~is_member).sum())


def _below(values: Vector, others: Vector) -> Vector:
    """How many of the others lie below each value, ties half."""
    rising = np.sort(others)
    return (np.searchsorted(rising, values, side="left") + np.searchsorted(rising, values, side="right")) / 2
