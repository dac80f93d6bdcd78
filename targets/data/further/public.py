"""Public records: nobody's membership is asked of them, so that a defense may train on them instead of the members."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ..checks import check_enough
from ..copies.repeats import codes
from ..records import Records

FOUND_AGAIN = 0.2  # of them: so many equal others by chance in the coarsest tables (see `repeats`)


def unlabelled(x: Tensor) -> Records:
    """Inputs of which nobody knows what a model should answer: all of class 0."""
    return Records(x, torch.zeros(len(x), dtype=torch.int64))


def check_public(public: Tensor, others: dict[str, Records]) -> tuple[Tensor, list[str]]:
    """The public records that are none of the audit's others, and sentences for the reader of the report.

    A member among them would be trained on after all, and a test record would pass for one that was.

    Args:
        public: float32 [n, *shape].
        others: the records of the audit, by the name of their split.

    Raises:
        InputError: more than a fifth, beyond what chance does in coarse tables, are others too; or too few are left.
    """
    own, notes = codes(unlabelled(public)), list[str]()
    left = np.ones(len(own), dtype=bool)
    for split, records in others.items():
        again = np.isin(own, codes(unlabelled(records.x)))
        if not again.any():
            continue
        what = f"{int(again.sum()):,} of the {len(own):,} public records (x_population) equal one of the {split}"
        if again.mean() > FOUND_AGAIN:
            raise InputError(
                f"{what} in every value (the first is number {int(again.argmax())} of them). Public records are others "
                "than those that the model was trained on or is tested with. Leave these out of x_population."
            )
        notes.append(f"{what} in every value; they are left out of the public ones.")
        left &= ~again
    found = public[torch.from_numpy(np.flatnonzero(left))]
    check_enough(unlabelled(found), "public records", len(own) if len(found) < len(own) else 0)
    return found, notes
