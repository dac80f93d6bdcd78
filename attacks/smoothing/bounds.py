"""What of a dense model's certificate a model made from it takes over. Pure functions of numpy arrays."""

from __future__ import annotations

import numpy as np

from ...targets.serving.smoothed import Counts, Floats, least_share


def most_share(hits: Counts, n: int, alpha: float) -> Floats:
    """What a probability is at most, with confidence 1 - alpha; arguments as for `least_share`."""
    return 1.0 - least_share(n - np.asarray(hits, dtype=np.int64), n, alpha)


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
