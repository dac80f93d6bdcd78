"""In which classes and groups of records more was lost than chance explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .rates import LEVEL, holm, mcnemar

Bools = np.ndarray[Any, np.dtype[np.bool_]]


def got_worse(
    lost: Bools, gained: Bools, masks: Mapping[str, Bools], level: float = LEVEL
) -> tuple[tuple[str, ...], str]:
    """The classes and groups in which more records were lost than chance explains, and a sentence on the test.

    Exact McNemar tests, two-sided, corrected for their number by Holm's method.

    Args:
        lost, gained: bool [n], what the parent alone gets right, and what the model alone does.
        masks: the records of each class and group, bool [n].
        level: that no name is there by chance.
    """
    counts = {name: (int(lost[mask].sum()), int(gained[mask].sum())) for name, mask in masks.items()}
    corrected = holm([mcnemar(minus, plus) for minus, plus in counts.values()])
    found = {
        name: f"{name} ({minus} lost, {plus} gained of {int(masks[name].sum())}, p = {p:.2g})"
        for (name, (minus, plus)), p in zip(counts.items(), corrected, strict=True)
        if minus > plus and p < 1 - level
    }
    test = f"exact McNemar test, Holm's correction for {len(counts)} classes and groups"
    if not found:
        return (), f"No class or group got significantly worse ({test})."
    return tuple(found), f"Got worse: {', '.join(found.values())} ({test})."
