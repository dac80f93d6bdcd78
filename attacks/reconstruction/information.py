"""How surely a window of a file is a record and not chance: bits of agreement, against all that was tried."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load where they are first used

from .moments import Floats

SAMPLE = 65_536  # values of a stream that tell how common a value is in it
ALARM = 1e-4  # expected chance matches in the whole file, above which nothing is reported
WORTH = 1.0  # chance matches of one window with any record, above which it is no part of a run of records either


def agreement(window: Floats, alike: float, sample: Floats, *, ordered: bool) -> float:
    """Bits of agreement of a window [d] with a record: -log2 of the chance that such a window gives.

    Of the values each distinct one counts once, and two not at all: the commonest (padding) and one more, for a scale
    and an offset are fitted. How often each occurs counts as if the file had them as often as the window has. Their
    order counts as the least of three descriptions of it:
    arrangements of the values, runs of equal values, and runs of equal steps, so that one-hot rows, steps and ramps,
    which files are full of, say little.

    Args:
        alike: how far apart two values may be and count as equal.
        sample: values of the stream, ascending.
    """
    codes, values, counts = _distinct(window, alike)
    free = len(window) - int(counts.max())
    low = np.searchsorted(sample, values - alike, "left")
    high = np.searchsorted(sample, values + alike, "right")
    share = (high - low + 1.0) / (len(sample) + 1.0)
    present = -np.expm1(free * np.log1p(-np.minimum(share, 1 - 1e-12)))  # that it occurs at all among so many
    each = np.delete(-np.log2(np.maximum(present, 1e-300)), counts.argmax())
    bits = float(each.sum() - each.max(initial=0.0)) + _often(counts)
    if ordered:
        steps = _distinct(np.diff(window), 2 * alike)[0]
        arrangements = (scipy.special.gammaln(len(window) + 1) - scipy.special.gammaln(counts + 1.0).sum()) / np.log(2)
        bits += min(float(arrangements), _runs(codes), _runs(steps))
    return bits


def _often(counts: Any) -> float:
    """Bits of how often each distinct value occurs: the least of two descriptions, so that values that all differ, as
    real numbers do, and zeros and ones say next to nothing.
    """
    n, distinct = counts.sum(), len(counts)
    own = (
        scipy.special.gammaln(counts + 1.0).sum() - scipy.special.gammaln(n + 1.0) - (counts * np.log(counts / n)).sum()
    )
    any_way = scipy.special.gammaln(n) - scipy.special.gammaln(distinct) - scipy.special.gammaln(n - distinct + 1.0)
    return float(min(own, any_way) / np.log(2))


def _distinct(values: Floats, alike: float) -> tuple[Any, Floats, Any]:
    """Code of each value, the distinct ones, and how often each occurs; neighbours closer than `alike` are one."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    first = np.concatenate([[True], np.diff(ascending) > alike])
    codes = np.empty(len(values), dtype=np.int64)
    codes[order] = np.cumsum(first) - 1
    return codes, ascending[first], np.bincount(codes)


def _runs(codes: Any) -> float:
    """Bits that say where runs of equal codes begin and which code each is of."""
    runs = 1 + int((np.diff(codes) != 0).sum())
    n, distinct = len(codes), len(np.unique(codes))
    where = scipy.special.gammaln(n) - scipy.special.gammaln(runs) - scipy.special.gammaln(n - runs + 1)
    return float(where / np.log(2) + runs * np.log2(max(distinct, 1)))


def by_chance(bits: float, rows: int) -> float:
    """Of one window: records that would agree so well by chance, expected, at most."""
    return rows * float(np.exp2(-min(bits, 1000.0)))
