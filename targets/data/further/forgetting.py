"""The records that a model was to forget: which of the training records they are, and whether they can be told at all.

They leave the members. So no recipe sees them, no shadow model is trained on them, and an audit that trains its dense
model trains it without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import InputError, quoted
from ...untrusted.files import ordinary_file
from ..checks import FEWEST, check_enough
from ..copies.repeats import codes
from ..npy import parse_npy
from ..records import Records

Positions = NDArray[np.int64]

MOST_BYTES = 2**28  # of a file of positions
FOUND_AGAIN = 0.2  # of them: so many equal others by chance in the coarsest tables (see `repeats`)


def read_positions(path: Path) -> NDArray[np.generic]:
    """What a file says is to be forgotten: an `.npy` array, or text with one position a line. See `positions`.

    Raises:
        InputError: there is no such file, or it holds something else.
        UnsafeInput: a pickle, or a crafted array.
    """
    path = ordinary_file(path, "the list of records to forget", MOST_BYTES)
    content = path.read_bytes()
    if path.suffix.lower() == ".npy":
        return parse_npy(content, f"The list of records to forget {quoted(path.name)}")
    try:
        return np.array([int(line) for line in content.decode("ascii").split()], dtype=np.int64)
    except (ValueError, OverflowError):
        raise InputError(
            f"The list of records to forget {quoted(path.name)} is no list of positions. Write one whole number a line "
            "(0 is the first training record), or save positions or a mask with numpy.save as .npy."
        ) from None


def positions(asked: Any, count: int, where: str) -> Positions:
    """Which of `count` training records are to be forgotten, int64, ascending.

    Args:
        asked: positions from 0, or true and false for each training record.
        where: that stands, for messages.

    Raises:
        InputError: it is neither, a position is no record's or given twice, or all records or too few are named.
    """
    told = f"The records to forget ({where})"
    try:
        given = np.asarray(asked)
    except (ValueError, TypeError):
        given = np.asarray([], dtype=object)
    if given.ndim != 1 or given.dtype.kind not in "iub":
        raise InputError(
            f"{told} are {given.dtype} of shape {list(given.shape)}. Give positions among the training records, from "
            "0 on, or a mask of true and false with one value for each of them."
        )
    if given.dtype.kind == "b":
        if len(given) != count:
            raise InputError(f"{told} are a mask of {len(given):,} for {count:,} training records. Give one for each.")
        given = np.flatnonzero(given)
    found = given.astype(np.int64)
    outside = found[(found < 0) | (found >= count)]
    if len(outside):
        raise InputError(
            f"{told} name record {int(outside[0])}, and the training records (x_train) run from 0 to {count - 1}. Give "
            "positions among the training records, those to forget included."
        )
    ordered = np.unique(found)
    if len(ordered) < len(found):
        repeated, times = np.unique(found, return_counts=True)
        twice = int(repeated[times > 1][0])
        ones = set(np.unique(found).tolist()) <= {0, 1} and len(found) == count
        mask = " It looks like a mask written as 0 and 1: save it as true and false." if ones else ""
        raise InputError(f"{told} name record {twice} more than once. Name each once.{mask}")
    if len(ordered) < FEWEST:
        raise InputError(
            f"{told} are only {len(ordered)}. At least {FEWEST} are needed, and a hundred or more to see a small leak."
        )
    if count - len(ordered) < FEWEST:
        raise InputError(
            f"{told} are {len(ordered):,} of {count:,} training records, so that next to nothing would have been kept. "
            "Name those that were to be forgotten; the training records keep the others."
        )
    return ordered


def set_aside(members: Records | None, asked: Any, where: str) -> tuple[Records, Records, Tensor]:
    """The training records without those to forget, those, and which are kept, int64.

    Args:
        asked: as `positions` takes it, or a file for `read_positions`.

    Raises:
        InputError: there are no training records; or as those two.
        UnsafeInput: as `read_positions`.
    """
    if members is None:
        raise InputError(
            f"Records to forget are named ({where}), and there are no training records (x_train, y_train) that they "
            "would be some of. Give the records that the model was trained on, those to forget included."
        )
    if isinstance(asked, Path):
        asked, where = read_positions(asked), asked.name
    chosen = torch.from_numpy(positions(asked, len(members), where))
    kept = torch.ones(len(members), dtype=torch.bool)
    kept[chosen] = False
    left = kept.nonzero().flatten()
    return members.take(left), members.take(chosen), left


def check_forgotten(forgotten: Records, members: Records | None, non_members: Records) -> tuple[Records, list[str]]:
    """The records that a model can have forgotten, and sentences for the reader of the report.

    Those of which a copy was kept, or is among the test records, are left out: nothing of them can be told.

    Raises:
        InputError: that is so of more than a fifth, beyond what chance does in coarse tables.
    """
    own, notes = codes(forgotten), list[str]()
    left = np.ones(len(own), dtype=bool)
    for others, split, why, mend in (
        (non_members, "test records (x_test)", "is evaluated", "Divide the data anew: no record is to be in both"),
        (
            members,
            "training records that are kept",
            "is still trained on",
            "Name every copy of what was to be forgotten",
        ),
    ):
        again = np.zeros(len(own), dtype=bool) if others is None else np.isin(own, codes(others))
        if not again.any():
            continue
        what = (
            f"{int(again.sum()):,} of the {len(own):,} records to forget equal one of the {split} in every value and "
            "in the label"
        )
        if again.mean() > FOUND_AGAIN:
            raise InputError(
                f"{what} (the first is number {int(again.argmax())} of them). What {why} can be no record that was "
                f"forgotten. {mend}."
            )
        notes.append(f"{what}; they are left out of what is asked about forgetting.")
        left &= ~again
    found = forgotten.take(torch.from_numpy(np.flatnonzero(left)))
    check_enough(found, "records to forget", len(own))
    return found, notes
