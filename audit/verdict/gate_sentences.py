"""The sentence of a gate: the figure, its change, the limit, what is doubtful, and what would settle it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...attacks.risk import ACCURACY, BALANCED_ACCURACY, Metric
from ..schema import wording
from ..schema.rows import Candidate, Change, Estimate, Finding
from .policy import BUILT_IN, EXACT

HOPELESS = 1000  # times as many records as there were
WIDE = 0.25  # half of what AUC ranges over: so large an increase is a limit in name only, whatever the parent is


def setting(finding: Finding | None) -> str:
    changed = () if finding is None else [one for one in finding.setting.items() if one[0].startswith("changed ")]
    for what, count in changed:
        return f" after {count} {what.removesuffix('s') if count == 1 else what}"
    epsilon = None if finding is None else finding.setting.get("epsilon")
    if finding is None or not isinstance(epsilon, int | float):  # a text, of an attack of another package
        return ""
    norm = " (L2)" if finding.setting.get("norm") == "l2" else ""
    return f" at eps {epsilon:.4g}{norm}"


def gate_sentence(
    subject: str, metric: Metric, estimate: Estimate, change: Change | None, compares: str, limit: float
) -> str:
    """`int8: robust accuracy at eps 0.1 is 31.0 % [27.0, 35.0], 12.3 points below its parent's [...]; ...`."""
    text = f"{subject} is {wording.estimate(estimate, metric)}"
    higher = metric.better == "higher"
    if estimate.unsearched is not None:
        text += " by this search"
    if compares == "absolute":
        return f"{text}; the policy asks for at {'least' if higher else 'most'} {wording.figure(limit, metric)}."
    assert change is not None, "a change is judged only where there is one"
    side = "above" if change.difference > 0 else "below"
    relation = f"{_distance(change.difference, metric)} {side}" if change.difference else "the same as"
    text += f", {relation} its parent's {wording.change_interval(change.low, change.high, metric)}"
    allowed = _distance(limit, metric) if limit else "nothing"
    return f"{text}; the policy allows at most {allowed} {'less' if higher else 'more'}."


def _distance(difference: float, metric: Metric) -> str:
    """`5.0 points` or `0.050`: without its sign."""
    return wording.signed(abs(difference), metric).removeprefix("+") + wording.change_unit(metric)


def what_settles(needed: int | None, n: int, available: int) -> str:
    """What would bring the interval to one side of the limit, and whether the data at hand can."""
    told = " The interval reaches across the limit"
    if needed is None or needed > HOPELESS * n:
        return f"{told}, and the figure lies on it: more records would not settle it, another limit would."
    rounded = float(f"{needed:.2g}") if needed > 100 else needed
    told += f"; about {rounded:.0f} records instead of {n} would settle it if the figure holds"
    if needed <= available:
        return f"{told}, and the data has {available}: let the attack have more of them, and the audit more time."
    return f"{told}; the data has {available}."


def doubt(flags: Sequence[str]) -> str:
    return f" The measurement may be too optimistic: {', '.join(flags)}." if flags else ""


def records_needed(value: float, low: float, high: float, limit: float, n: int) -> int | None:
    """About how many records would bring the interval to one side of the limit, if the value held; None: no number.

    The width of an interval goes with the square root of the records; the value itself lies on the limit where none
    would do.
    """
    gap = abs(value - limit)
    width = high - value if value < limit else value - low
    if gap <= EXACT or width <= EXACT:
        return None
    return max(n + 1, math.ceil(n * min(width / gap, 1e6) ** 2))  # more is as good as never


def cannot_fail(judged: Estimate | Change, limit: float, metric: Metric, candidate: Candidate) -> str | None:
    """Why a limit says nothing of this candidate, in a sentence: one keeps it who guesses, or who gives all away.

    A change that `release` allows too is never meant, nor a modest one that a leaky parent leaves no room for: what is
    weak there is the parent, or accuracy as a measure, which stands beside the verdict.
    """
    if metric.unit == "number":
        return None
    worst = limit
    if isinstance(judged, Change):
        if abs(limit) <= abs(BUILT_IN["release"].changes.get(metric.name, 0.0)) + EXACT:
            return None
        worst = judged.baseline_estimate + limit
    if metric.better == "lower":
        if worst < 1 - EXACT or (isinstance(judged, Change) and limit < WIDE):
            return None
        return f"The limit allows {wording.figure(1.0, metric)} and so can hardly fail: give a tighter one."
    guessed = guess(metric, candidate)
    if worst > guessed + EXACT:
        return None
    if not guessed:
        return f"The limit allows {wording.figure(0.0, metric)} and so can hardly fail: give a tighter one."
    instead = ", or limit balanced_accuracy" if metric.name == ACCURACY.name else ""
    return (
        f"A model that always answers the commonest class keeps this limit ({wording.figure(guessed, metric)}), so "
        f"that it can hardly fail: give a tighter one{instead}."
    )


def guess(metric: Metric, candidate: Candidate) -> float:
    """What whoever always answers the commonest class gets; 0 of figures that an attack may push below chance."""
    counts = [] if candidate.classes is None else [one.n for one in candidate.classes.recalls]
    if not counts or metric.name not in (ACCURACY.name, BALANCED_ACCURACY.name):
        return 0.0
    return 1 / len(counts) if metric.name == BALANCED_ACCURACY.name else max(counts) / sum(counts)
