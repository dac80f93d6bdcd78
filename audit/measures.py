"""Figures with their intervals, as the rows of audit.json want them."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import statistics
from .findings import Change, Estimate, Point

Bools = np.ndarray[Any, np.dtype[np.bool_]]
FPR = 0.01


def rate(successes: Any) -> Estimate:
    """A share of records (bool [n]) with its Clopper-Pearson interval."""
    k, n = int(np.sum(successes)), len(successes)
    low, high = _ends(statistics.clopper_pearson(k, n))
    return Estimate(estimate=k / n, low=low, high=high, n=n)


def rate_change(candidate: Bools, baseline: Bools, name: str) -> Change:
    """The change of a share on the same records: Tango's score interval, exact McNemar."""
    change = _change(statistics.paired_change(candidate, baseline), float(np.mean(baseline)), name)
    return change.model_copy(update={"baseline_high": rate(baseline).high})


def mean(values: Any) -> Estimate:
    """A mean (float [n]) with Student's t interval."""
    interval = statistics.mean(values)
    low, high = _ends(interval)
    return Estimate(estimate=interval.estimate, low=low, high=high, n=len(values))


def mean_change(values: Any, theirs: Any, name: str) -> Change:
    """The change of a mean on the same records: the paired t interval and test."""
    return _change(statistics.mean(np.asarray(values) - np.asarray(theirs)), float(np.mean(theirs)), name)


def auc(scores: Any, is_member: Bools) -> Estimate:
    """Area under the ROC curve with DeLong's interval."""
    interval = statistics.auc(scores, is_member)
    low, high = _ends(interval)
    return Estimate(estimate=interval.estimate, low=low, high=high, n=len(is_member))


def auc_change(scores: Any, theirs: Any, is_member: Bools, name: str) -> Change:
    """Of two scores of the same records: paired DeLong."""
    return _change(statistics.auc_change(scores, theirs, is_member), auc(theirs, is_member).estimate, name)


def tpr(scores: Any, is_member: Bools) -> Estimate | None:
    """TPR at 1 % FPR, the threshold's error included; None where there are too few non-members for that rate."""
    if (~is_member).sum() < 1 / FPR:
        return None
    interval = statistics.tpr_at_fpr(scores, is_member, FPR)
    low, high = _ends(interval)
    return Estimate(estimate=interval.estimate, low=low, high=high, n=len(is_member))


def tpr_change(scores: Any, theirs: Any, is_member: Bools, name: str, seed: int) -> Change:
    """Of two scores of the same records: paired bootstrap."""
    baseline = statistics.tpr_at_fpr(theirs, is_member, FPR).estimate
    return _change(statistics.tpr_change(scores, theirs, is_member, FPR, seed=seed), baseline, name)


def point(x: float, successes: Any) -> Point:
    """A point of a curve of rates."""
    own = rate(successes)
    return Point(x=x, estimate=own.estimate, low=own.low, high=own.high)


def roc(scores: Any, is_member: Bools, points: int = 60) -> list[Point]:
    """The ROC curve at about evenly spaced places of a logarithmic axis, from the first false positive on."""
    false, true = statistics.roc(scores, is_member)
    n = int((~is_member).sum())
    wanted = np.unique(np.round(np.geomspace(1, n, min(points, n))).astype(int)) / n
    # the best rate of the curve that stays within each false positive rate
    last = np.searchsorted(false, wanted + 1e-12, side="right") - 1
    return [Point(x=float(x), estimate=float(true[position])) for x, position in zip(wanted, last, strict=True)]


def _ends(interval: statistics.Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _change(interval: statistics.Interval, baseline: float, name: str) -> Change:
    return Change(
        baseline=name,
        baseline_estimate=baseline,
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        p_value=interval.p_value,
    )
