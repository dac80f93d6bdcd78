"""Rates that count every class alike: the mean of the classes' own rates, however many records each has.

The classes are independent samples, so their intervals are combined by the method of variance estimates recovery (Zou
& Donner 2008, "Construction of confidence limits about effect measures"): the distances from each class's estimate to
its own limits add up in squares. With many classes of few records, whose own intervals all lean to one half, that
covers too little (.88 at 100 classes of 2 records); there a normal interval with smoothed rates covers. The wider of
the two holds in both cases: 95 % and more from 2 classes, one of 10 records, to 100 classes of 2.
"""

from __future__ import annotations

import numpy as np

from .rates import LEVEL, Interval, Vector, clopper_pearson, paired_change, smoothed_error


def balanced_rate(successes: Vector, classes: Vector) -> Interval:
    """The mean over classes of the share of successes, in [0, 1]: of `correct`, the balanced accuracy.

    Args:
        successes: bool [n]; classes: int [n]. A class without a record does not count.
    """
    successes, classes = np.asarray(successes, dtype=bool), np.asarray(classes)
    masks = [classes == label for label in np.unique(classes)]
    joined = _mean([clopper_pearson(int(successes[mask].sum()), int(mask.sum())) for mask in masks])
    reach = smoothed_error(successes, classes)
    low, high = min(joined.low, joined.estimate - reach), max(joined.high, joined.estimate + reach)
    return Interval(joined.estimate, max(0.0, low), min(1.0, high))


def balanced_change(after: Vector, before: Vector, classes: Vector, level: float = LEVEL) -> Interval:
    """The change of the balanced rate on the same records, in [-1, 1]; per class Tango's paired score interval.

    Args:
        after, before: bool [n]; classes: int [n].
    """
    after, before, classes = np.asarray(after, dtype=bool), np.asarray(before, dtype=bool), np.asarray(classes)
    masks = [classes == label for label in np.unique(classes)]
    return _mean([paired_change(after[mask], before[mask], level) for mask in masks])


def _mean(found: list[Interval]) -> Interval:
    """Of independent estimates."""
    estimate = sum(one.estimate for one in found) / len(found)
    below = sum((one.estimate - one.low) ** 2 for one in found) ** 0.5 / len(found)
    above = sum((one.high - one.estimate) ** 2 for one in found) ** 0.5 / len(found)
    return Interval(estimate, estimate - below, estimate + above)
