"""Medians of values known as grades only: of a few ascending settings, the first at which something happened."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rates import LEVEL

Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]
RESAMPLES = 2000


def graded_median(first: Integers, grades: int, *, seed: int, level: float = LEVEL) -> tuple[int, int, int]:
    """The median grade and its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13), three positions.

    The median is the first grade that at least half of the records have reached.

    Args:
        first: int [n], in [0, grades]; `grades` itself: none was reached.
        seed: of the bootstrap.

    Raises:
        ValueError: no records, or a grade that there is not.
    """
    if not len(first) or first.min() < 0 or first.max() > grades:
        raise ValueError(f"grades lie in [0, {grades}], of one record at least")
    counts = np.bincount(first, minlength=grades + 1)
    stream = np.random.default_rng(seed)
    drawn = stream.multinomial(len(first), counts / len(first), RESAMPLES)
    tail = (1 - level) / 2
    low, high = np.quantile(_medians(drawn), (tail, 1 - tail), method="inverted_cdf")
    median = int(_medians(counts[None])[0])
    return median, min(int(low), median), max(int(high), median)


def _medians(counts: Integers) -> Integers:
    """int [m], of counts by grade, int [m, grades + 1]."""
    reached = 2 * counts.cumsum(1) >= counts.sum(1, keepdims=True)
    medians: Integers = reached.argmax(1)
    return medians
