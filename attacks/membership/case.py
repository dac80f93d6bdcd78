"""What the membership attack works on: attacked records, what shadow models say of them, which of these a target may be
compared with, and their sums by record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...targets.data.records import Records

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

TINY = 1e-12  # the least a sum of squares is taken for


@dataclass(frozen=True, eq=False)  # one population is itself: what is found out of it is kept by it
class ShadowSignals:
    """What one population of shadow models says of the attacked records.

    Args:
        inside: bool [k, n], record j was in the training set of shadow i (each record in half of the shadows).
        phi: float32 [k, n], the logit margin `z_y - logsumexp(z_others)` of shadow i on record j.
    """

    inside: np.ndarray[Any, np.dtype[np.bool_]]
    phi: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class MembershipCase:
    """The records of a membership audit, equal numbers of both sorts, and what shadow models say of them.

    Args:
        records: members first, then as many non-members.
        is_member: bool [n], the truth for the audited model.
        ids: int64 [n], indices into `Data.members` or `Data.non_members`.
        own: shadows compressed as the candidate was; None: the attacker has no shadow models.
        dense: uncompressed shadows; None when the candidate is the uncompressed model itself.
        blind: float64 [n], scores of a classifier that never asks a model, the same for all models of a population;
            None: the attack computes them.
    """

    records: Records
    is_member: np.ndarray[Any, np.dtype[np.bool_]]
    ids: np.ndarray[Any, np.dtype[np.int64]]
    own: ShadowSignals | None
    dense: ShadowSignals | None
    blind: np.ndarray[Any, np.dtype[np.float64]] | None = None


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
