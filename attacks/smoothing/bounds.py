"""From counts of answers under noise to radii that hold with a stated confidence. Pure functions of numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts load where they are first used: a worker needs few

Counts = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def least_share(hits: Counts, n: int, alpha: float) -> Floats:
    """What a probability is at least, with confidence 1 - alpha: Clopper and Pearson's one-sided bound (1934).

    Args:
        hits: int64 [r], of `n` independent draws each.
        alpha: in (0, 1).

    Returns:
        float64 [r].
    """
    hits = np.asarray(hits, dtype=np.int64)
    return np.where(hits > 0, scipy.special.betaincinv(np.maximum(hits, 1), n - hits + 1, alpha), 0.0)


def most_share(hits: Counts, n: int, alpha: float) -> Floats:
    """What a probability is at most, with confidence 1 - alpha; arguments as for `least_share`."""
    return 1.0 - least_share(n - np.asarray(hits, dtype=np.int64), n, alpha)


def radii(share: Floats, sigma: float) -> Floats:
    """The L2 radius within which a model under Gaussian noise keeps its answer; -1: it abstains (Cohen, Rosenfeld &
    Kolter 2019, arXiv:1902.02918, theorem 1, with the runner-up's probability bounded by the rest).

    Args:
        share: float64 [r], what the probability of the answer is at least.
        sigma: standard deviation of the noise; the radii are in its units.
    """
    sure = share > 0.5
    return np.where(sure, sigma * scipy.special.ndtri(np.where(sure, share, 0.75)), -1.0)


def carried_share(hits: Counts, n: int, disagreements: Counts, m: int, alpha: float) -> Floats:
    """What the probability of a dense model's answer is at least on a model made from it, from few draws on the latter.

    The two answers differ with probability at most zeta, so that each class keeps its probability but for zeta
    (Ugare et al. 2024, arXiv:2305.19521, incremental robustness certification). Both bounds take half of alpha each,
    so that they hold together; the draws may be the same.

    Args:
        hits: int64 [r], of `n` draws on the dense model.
        disagreements: int64 [r], of `m` draws on which the two gave other answers.
    """
    return least_share(hits, n, alpha / 2) - most_share(disagreements, m, alpha / 2)
