"""In which classes and groups of records more was lost than chance explains, and how much in the worst of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .rates import LEVEL, Interval, holm, mcnemar, paired_change

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


def each_of(count: int, level: float = LEVEL) -> float:
    """The level of each of so many intervals such that all hold together with `level` (Bonferroni)."""
    return 1 - (1 - level) / count


def worst_change(after: Bools, before: Bools, masks: Mapping[str, Bools], level: float = LEVEL) -> tuple[str, Interval]:
    """The class or group whose rate fell most, and the least of all their changes, whichever it is, in [-1, 1].

    The interval is simultaneous: each group's own is a paired score interval (Tango 1998) at the level that lets all
    hold together, so that the least of their lower ends and the least of their upper ends enclose the least change,
    although the group was chosen by looking. The p-value tests that no group lost anything: the smallest of exact
    McNemar tests, by Bonferroni.

    Args:
        after, before: bool [n], of the same records.
        masks: the records of each class and group, bool [n], one of them at least; they may overlap.
    """
    own = each_of(len(masks), level)
    found = {name: paired_change(after[mask], before[mask], own) for name, mask in masks.items()}
    worst = min(found, key=lambda name: (found[name].estimate, found[name].low))
    losses = [one.p_value for one in found.values() if one.p_value is not None and one.estimate < 0]
    p_value = min(1.0, len(masks) * min([1.0, *losses]))
    low, high = min(one.low for one in found.values()), min(one.high for one in found.values())
    return worst, Interval(found[worst].estimate, low, high, p_value)
