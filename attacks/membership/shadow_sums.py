"""Which shadow models a target may be compared with, and their sums by record."""

from __future__ import annotations

from typing import Any

import numpy as np

from .case import ShadowSignals

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

TINY = 1e-12  # the least a sum of squares is taken for


def every(phi: Floats, signals: ShadowSignals) -> Bools:
    """bool [t, k]: each target is compared with all shadows."""
    return np.ones((len(phi), len(signals.phi)), dtype=bool)


def sums(shadow: Floats, side: Bools, keep: Bools) -> tuple[Floats, Floats, Floats]:
    """Of the shadows on one side: their number, mean and sum of squares around it, [t, n] each."""
    weight, chosen = side.astype(float), keep.astype(float)
    count = np.einsum("tk,kn->tn", chosen, weight)
    mean = np.einsum("tk,kn->tn", chosen, weight * shadow) / np.maximum(count, 1)
    squares = np.einsum("tk,kn->tn", chosen, weight * shadow**2) - count * mean**2
    return count, mean, np.maximum(squares, TINY)


def related(targets: Bools, shadows: Bools) -> Bools:
    """bool [t, k]: the shadow was trained on the target's own half of the records, or on exactly the other half.

    The complement must go too: without it a record of the target's would be missing once more on the inside of the
    shadows that are left, and their number alone would give its membership away.
    """
    agreement = (targets[:, None, :] == shadows[None, :, :]).sum(2)
    result: Bools = (agreement == 0) | (agreement == targets.shape[1])
    return result
