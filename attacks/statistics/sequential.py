"""Looking several times at growing data without erring more often: group-sequential boundaries by error spending."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

from .rates import Vector

FIRST = 200  # records of the first look: fewer decide nothing but the plainest case
GRID = 2001  # points of a density between two looks; 4 digits of a boundary


def looks(most: int) -> tuple[int, ...]:
    """At how many records to look: at twice as many each time, and at all of them.

    A look shortly before the last costs more error than it saves records, and is left out.
    """
    counts, count = [], FIRST
    while 1.5 * count <= most:
        counts.append(count)
        count *= 2
    return (*counts, most)


def spent(fraction: float, alpha: float) -> float:
    """How much of the error `alpha` may be spent by the time a fraction of the records is in (Lan & DeMets 1983).

    Their Pocock-type function: it spends much early, for those who would rather stop early.
    """
    return alpha * math.log(1 + (math.e - 1) * min(fraction, 1.0))


@lru_cache(maxsize=64)
def boundaries(counts: Sequence[int], alpha: float = 0.05) -> tuple[float, ...]:
    """Per look the |z| beyond which it may stop, so that all looks together err with probability `alpha` at most.

    By recursive integration of the score's density over what went on so far (Armitage, McPherson & Rowe 1969).

    Args:
        counts: records at each look, ascending; a tuple. The last is where it ends at the latest.

    Raises:
        ValueError: no look, or counts that do not ascend from 1.
    """
    if not counts or counts[0] < 1 or any(a >= b for a, b in pairwise(counts)):
        raise ValueError(f"looks are at ascending numbers of records, not at {list(counts)}")
    fractions = [count / counts[-1] for count in counts]
    found: list[float] = []
    points, mass = np.zeros(1), np.ones(1)  # where the score is, of those who went on, and with what probability
    before, gone = 0.0, 0.0
    for fraction in fractions:
        spend = spent(fraction, alpha) - gone
        step = math.sqrt(fraction - before)

        missing = partial(_excess, points=points, mass=mass, root=math.sqrt(fraction), step=step, spend=spend)
        z = float(scipy.optimize.brentq(missing, 0.0, 12.0, xtol=1e-6))
        found.append(z)
        edge = z * math.sqrt(fraction)
        grid = np.linspace(-edge, edge, GRID)
        density = (mass[:, None] * _density((grid[None, :] - points[:, None]) / step)).sum(0) / step
        weights = np.full(GRID, grid[1] - grid[0])
        weights[[0, -1]] /= 2
        points, mass = grid, density * weights
        before, gone = fraction, spent(fraction, alpha)
    return tuple(found)


def _excess(z: float, *, points: Vector, mass: Vector, root: float, step: float, spend: float) -> float:
    """The probability of a |score| / `root` beyond z after a step from `points`, over what may be spent."""
    tails = scipy.special.ndtr(-((z * root - points) / step)) + scipy.special.ndtr((-z * root - points) / step)
    return float((mass * tails).sum()) - spend


def _density(x: Vector) -> Vector:
    """Of the standard normal distribution."""
    return np.asarray(np.exp(-(x**2) / 2.0) / math.sqrt(2 * math.pi))


def level_at(counts: Sequence[int], look: int, alpha: float = 0.05) -> float:
    """The level of the interval at one look, such that those of all looks hold together with 1 - `alpha`.

    These are repeated confidence intervals (Jennison & Turnbull 1989): they hold whatever made one stop.

    Args:
        look: counted from 0.
    """
    if len(counts) == 1:
        return 1 - alpha
    return float(1 - 2 * scipy.special.ndtr(-boundaries(tuple(counts), alpha)[look]))
