"""Shares of the same records over several models alike: both vary, and an interval must hold for others of either.

Models and records are crossed random effects (Cornfield & Tukey 1956): the variance of the mean is that of the models'
own means plus that of the records' own, each divided by its number, which counts what is left over twice and so errs on
the wide side (as the pigeonhole bootstrap does, Owen 2007, arXiv:0712.1111). Degrees of freedom are Satterthwaite's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from .rates import LEVEL, Interval, clopper_pearson, tango

Values = np.ndarray[Any, np.dtype[Any]]


def crossed_rate(values: Values, level: float = LEVEL) -> Interval:
    """The mean of bool [models, records], in [0, 1].

    Never narrower than the exact interval of one model with that mean on these records (Clopper & Pearson).

    Raises:
        ValueError: no model or no record.
    """
    given = _checked(values)
    n, mean = given.shape[1], float(given.mean())
    own, reach = clopper_pearson(round(mean * n), n, level), _reach(given, level)
    return Interval(mean, max(0.0, min(own.low, mean - reach)), min(1.0, max(own.high, mean + reach)))


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
    """How far Student's t interval reaches to either side; of a single model the records alone vary."""
    models, records = values.shape
    of_models = float(values.mean(1).var(ddof=1)) / models if models > 1 else 0.0
    of_records = float(values.mean(0).var(ddof=1)) / records if records > 1 else 0.0
    total = of_models + of_records
    if total == 0:
        return 0.0
    freedom = total**2 / (of_models**2 / max(1, models - 1) + of_records**2 / max(1, records - 1))
    return float(scipy.special.stdtrit(freedom, 0.5 + level / 2) * np.sqrt(total))
