"""From stored outcomes and distances to plain figures: how far, how alike, from where on, and who fell first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ....targets.form import Arrays
from ...measurement import Bools, Fragile, Graded, Quantity
from .distances import L2, LINF, SIMILARITY, VALUES

Integers = np.ndarray[Any, np.dtype[np.int64]]
NAMES = {LINF: "L-inf change", L2: "L2 change", VALUES: "Changed values", SIMILARITY: "SSIM"}
Statistics = tuple[tuple[str, Callable[[Any], Any]], ...]
MEDIAN_AND_LARGEST: Statistics = (("median", np.median), ("largest", np.max))
MEAN_AND_LOWEST: Statistics = (("mean", np.mean), ("lowest", np.min))
MOST_NAMED = 10  # fragile records


def quantities(arrays: Arrays, fooled: Bools, names: Mapping[str, str] | None = None) -> tuple[Quantity, ...]:
    """How far the inputs that fooled a model are from their records; nothing where none did.

    Args:
        arrays: those of `distances` among others; what is not there is left out.
        fooled: bool [n]; records that are wrong as they are did not need to be changed.
        names: for a reader, in place of `NAMES`.
    """
    n = int(fooled.sum())
    if n == 0:
        return ()
    found: list[Quantity] = []
    for key, name in {**NAMES, **(names or {})}.items():
        if key in arrays:
            values = np.asarray(arrays[key])[fooled]
            statistics = MEAN_AND_LOWEST if key == SIMILARITY else MEDIAN_AND_LARGEST
            found += [Quantity(name, statistic, float(take(values)), n) for statistic, take in statistics]
    return tuple(found)


def first_wrong(robust: Sequence[Bools]) -> Integers:
    """int64 [n]: the first of several outcomes in which a record is wrong; their number where it is in none.

    Args:
        robust: bool [n] each.
    """
    wrong = ~np.stack([np.asarray(one, dtype=bool) for one in robust])
    first: Integers = np.where(wrong.any(0), wrong.argmax(0), len(wrong)).astype(np.int64)
    return first


def smallest(name: str, settings: Sequence[float], first: Integers) -> Quantity:
    """The median over all records of the smallest setting that fools, which is 0 for those that are wrong as they are.

    Args:
        name: for a reader: "smallest epsilon that fools".
        settings: ascending, from 0.
        first: int64 [n], positions in them (`first_wrong`).
    """
    return Quantity(name, "median", Graded(tuple(settings), first), len(first))


def fragile(settings: Sequence[float], first: Integers, ids: Integers, ways: Sequence[Integers]) -> Fragile | None:
    """The records that fell at the smallest setting at which any did; None: none did. Those wrong as they are do not
    count.

    Args:
        settings, first: as in `smallest`.
        ids: int64 [n].
        ways: by setting, int64 [n]: how many parts of the attack fooled a record there; what more of them do is named
            first.
    """
    fallen = first[(first > 0) & (first < len(settings))]
    if not len(fallen):
        return None
    at = int(fallen.min())
    rows = np.flatnonzero(first == at)
    order = rows[np.lexsort((ids[rows], -ways[at][rows]))]
    return Fragile(settings[at], len(rows), tuple(int(one) for one in ids[order[:MOST_NAMED]]))
