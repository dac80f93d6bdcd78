"""What the membership attack works on: the attacked records, and what shadow models say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...targets.data.records import Records


@dataclass(frozen=True)
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
