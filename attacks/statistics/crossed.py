"""Shares of the same records over several models alike: both vary, and an interval must hold for others of either.

Models and records are crossed random effects (Cornfield & Tukey 1956): the variance of the mean is that of the models'
own means plus that of the records' own, each divided by its number, which counts what is left over twice and so errs on
the wide side (as the pigeonhole bootstrap does, Owen 2007, arXiv:0712.1111). Each part reaches as far as Student's t of
its own degrees of freedom has it, since a few models say little of how models vary. Shares of a few models are skewed
as well, so that a share's interval also holds the one that is made of their logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from .rates import LEVEL, Interval, clopper_pearson, tango

Values = np.ndarray[Any, np.dtype[Any]]


def crossed_rate(values: Values, level: float = LEVEL) -> Interval:
    """The mean of bool [models, records], in [0, 1].

    Never narrower than the exact interval of one model with that mean on these records (Clopper & Pearson). Against
    simulated truths it holds in 95 of 100 cases or more; with few models whose shares differ as much as .02 and .6 do,
    most of them near 0 or 1, in 89.

    Raises:
        ValueError: no model or no record.
    """
    given = _checked(values)
    n, mean = given.shape[1], float(given.mean())
    own, reach = clopper_pearson(round(mean * n), n, level), _reach(given, level)
    low, high = _by_logits(given, level) if len(given) > 2 else (mean, mean)  # of two Student's t says nothing there
    return Interval(mean, max(0.0, min(own.low, mean - reach, low)), min(1.0, max(own.high, mean + reach, high)))


def crossed_change(after: Values, before: Values, level: float = LEVEL) -> Interval:
    """mean(after) - mean(before) of two bool [models, records], paired: models and records are the same on both sides.

    Never narrower than Tango's interval of one pair of models with as many changes each way.

    Raises:
        ValueError: no model or no record, or two shapes.
    """
    first, second = _checked(after), _checked(before)
    if first.shape != second.shape:
        raise ValueError(f"a change is of the same models and records, not of {first.shape} and {second.shape}")
    difference = first - second
    n, mean = difference.shape[1], float(difference.mean())
    up, down = (round(float((difference == side).mean()) * n) for side in (1, -1))
    own, reach = tango(up, down, n, level), _reach(difference, level)
    return Interval(mean, max(-1.0, min(own.low, mean - reach)), min(1.0, max(own.high, mean + reach)))


def _checked(values: Values) -> Values:
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 2 or not given.size:
        raise ValueError(f"one value for each model and record, not {given.shape}")
    return given


def _reach(values: Values, level: float) -> float:
    """How far the interval reaches to either side; of a single model the records alone vary."""
    models, records = values.shape
    return float(np.sqrt(_far(values.mean(1), models, level) + _far(values.mean(0), records, level)))


def _by_logits(values: Values, level: float) -> tuple[float, float]:
    """The interval of a share from the models' own logits, with half an answer of either kind added to each."""
    models, records = values.shape
    right = values.sum(1)
    logits = np.log((right + 0.5) / (records - right + 0.5))
    share = (float(values.sum()) + 0.5) / (values.size + 1)
    of_records = _far(values.mean(0), records, level) / (share * (1 - share)) ** 2
    reach = float(np.sqrt(_far(logits, models, level) + of_records))
    ends = scipy.special.expit(float(logits.mean()) + np.array([-reach, reach]))
    return float(ends[0]), float(ends[1])


def _far(means: Values, count: int, level: float) -> float:
    """Square of how far the mean of `count` values lies from that of all there could be (Student's t)."""
    if count < 2:
        return 0.0
    return float(scipy.special.stdtrit(count - 1, 0.5 + level / 2)) ** 2 * float(means.var(ddof=1)) / count
