"""Outcomes of attacks -> figures with their intervals, as the rows of audit.json want them: one way for all attacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...attacks.measurement import (
    AtLeast,
    Auc,
    Comparison,
    Crossed,
    Found,
    Fragile,
    Graded,
    GroupRates,
    Mean,
    MeasuredPart,
    Measurement,
    Outcome,
    Pattern,
    Quantity,
    Rate,
    TprAtFpr,
)
from ...attacks.statistics import medians, ranking, rates
from ...attacks.statistics.crossed import crossed_change, crossed_rate
from ...attacks.statistics.groups import each_of, worst_change
from ..schema import quantity_rows
from ..schema.rows import Change, Estimate, Part, Point


def estimate(outcome: Outcome, level: float = rates.LEVEL) -> Estimate:
    """With its interval: Clopper-Pearson for a rate (of groups the lowest, simultaneous), Student's t for a mean,
    DeLong for an AUC; for a TPR one that holds the error of its threshold. What a search found has none; what is at
    least so much may be anything above.

    Raises:
        ValueError: the outcome has no records, or values that are none.
    """
    _check(outcome)
    match outcome:
        case AtLeast(value, most, n):
            return Estimate(estimate=value, low=value, high=max(value, most), n=n)
        case Rate(successes, among):
            k, n = int(np.sum(successes)), len(successes)
            interval = rates.clopper_pearson(k, n, each_of(among, level))
            return Estimate(estimate=k / n, low=interval.low, high=interval.high, n=n)
        case Crossed(successes):
            interval, n = crossed_rate(successes, level), successes.shape[1]
        case Mean(values, least, step):
            interval, n = rates.mean(values, level, step), len(values)
            interval = replace(interval, low=max(interval.low, least))
        case Auc(scores, is_member, spread):
            interval, n = ranking.auc(scores, is_member, level, spread=spread), len(is_member)
        case TprAtFpr(scores, is_member, fpr):
            interval, n = ranking.tpr_at_fpr(scores, is_member, fpr, level), len(is_member)
        case GroupRates(successes, masks):
            groups = [estimate(Rate(successes[mask], len(masks)), level) for mask in masks.values()]
            low, high = min(one.low for one in groups), min(one.high for one in groups)
            return Estimate(estimate=min(one.estimate for one in groups), low=low, high=high, n=len(successes))
        case Found(count, searched, unsearched):
            return Estimate(estimate=count, low=count, high=count, n=searched, unsearched=unsearched)
    return Estimate(estimate=interval.estimate, low=interval.low, high=interval.high, n=n)


def _columns(outcome: Outcome) -> list[Any]:
    match outcome:
        case AtLeast(value, most, _):
            return [np.array([value, most])]
        case Rate(successes) | GroupRates(successes):
            return [successes]
        case Crossed(successes):
            return list(successes)
        case Mean(values):
            return [values]
        case Auc(scores, is_member) | TprAtFpr(scores, is_member, _):
            return [scores, is_member]
        case Found():
            return []


def _check(outcome: Outcome) -> None:
    """What another package's attack may get wrong, told in the attack's own terms."""
    if isinstance(outcome, Found):
        if outcome.count < 0 or outcome.searched < 1 or not outcome.unsearched:
            raise ValueError("a Found counts from 0 on, what it searched from 1 on, and says what it did not search")
        return
    name, columns = type(outcome).__name__, [np.asarray(column) for column in _columns(outcome)]
    shapes = {column.shape for column in columns}
    if len(shapes) > 1 or columns[0].ndim != 1 or not columns[0].size:
        raise ValueError(f"a {name} holds one value per record, of one record at least, not {sorted(shapes)}")
    flags = columns[-1]
    if not isinstance(outcome, Mean | AtLeast) and flags.dtype != bool:
        raise ValueError(f"a {name} holds true or false per record, not {flags.dtype}")
    if (isinstance(outcome, Mean | AtLeast) and not np.isfinite(flags).all()) or np.isnan(columns[0]).any():
        raise ValueError(f"a {name} holds a value that is no number (NaN or infinite)")


def rate(successes: Any) -> Estimate:
    """A share of records, bool [n]."""
    return estimate(Rate(successes))


def change(comparison: Comparison, *, seed: int, level: float = rates.LEVEL) -> Change:
    """The paired difference with its interval, on the same records.

    Tango's score interval and exact McNemar for rates (of groups where they fell most, simultaneous), the paired t for
    means, paired DeLong for AUCs, a paired bootstrap for TPRs.

    Args:
        seed: of the bootstrap.
        level: of the interval.

    Raises:
        ValueError: the two are not of the same records.
        TypeError: they are figures of two kinds.
    """
    if isinstance(comparison.own, Found) or isinstance(comparison.theirs, Found):
        raise TypeError("what a search found is counted, and has no paired difference")
    own_length, other_length = (len(_columns(one)[0]) for one in (comparison.own, comparison.theirs))
    if own_length != other_length:
        raise ValueError(
            f"the comparison with {comparison.baseline} is of the same records, not of {own_length} and {other_length}"
        )
    _check(comparison.own)
    _check(comparison.theirs)
    baseline_high = None
    match comparison.own, comparison.theirs:
        case Rate(own), Rate(theirs):
            interval = rates.paired_change(own, theirs, level)
            baseline, baseline_high = float(np.mean(theirs)), estimate(Rate(theirs), level).high
        case GroupRates(own, masks), GroupRates(theirs):
            worst, interval = worst_change(own, theirs, masks, level)
            baseline = float(np.mean(theirs[masks[worst]]))
        case Crossed(own), Crossed(theirs):
            interval, baseline = crossed_change(own, theirs, level), float(np.mean(theirs))
        case Mean(values, _, step), Mean(others):
            interval = rates.mean(np.asarray(values) - np.asarray(others), level, step)
            baseline = float(np.mean(others))
        case Auc(scores, is_member), Auc(others, _):
            interval = ranking.auc_change(scores, others, is_member, level)
            baseline = ranking.auc(others, is_member).estimate
        case TprAtFpr(scores, is_member, fpr), TprAtFpr(others, _, _):
            interval = ranking.tpr_change(scores, others, is_member, fpr, seed=seed, level=level)
            baseline = ranking.tpr_at_fpr(others, is_member, fpr).estimate
        case own, theirs:
            raise TypeError(f"{type(own).__name__} and {type(theirs).__name__} are figures of two kinds")
    return Change(
        baseline=comparison.baseline,
        baseline_estimate=baseline,
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        p_value=interval.p_value if level == rates.LEVEL else None,  # of one look, which several would belie
        counted=list(comparison.counted),
        flags=list(comparison.flags),
        baseline_high=baseline_high,
        floor=comparison.floor,
        instead=comparison.instead,
    )


def part(measured: MeasuredPart, level: float) -> Part:
    own = None if measured.outcome is None else estimate(measured.outcome, level)
    return Part(
        name=measured.name,
        estimate=None if own is None else own.estimate,
        low=None if own is None else own.low,
        high=None if own is None else own.high,
        flags=list(measured.flags),
        skipped=measured.skipped,
        headline=measured.headline,
        counted=measured.counted,
    )


def transfer(model: str, outcome: Rate, level: float) -> quantity_rows.Transfer:
    return quantity_rows.Transfer(model=model, **estimate(outcome, level).model_dump())


def quantity(measured: Quantity, *, seed: int, level: float = rates.LEVEL) -> quantity_rows.Quantity:
    """A plain figure; of graded values the median with its bootstrap interval.

    Args:
        seed: of the bootstrap.
    """
    name, statistic, value = measured.name, measured.statistic, measured.value
    if not isinstance(value, Graded):
        return quantity_rows.Quantity(name=name, statistic=statistic, value=value, n=measured.n)
    settings = value.settings
    middle, low, high = medians.graded_median(value.first, len(settings), seed=seed, level=level)
    steps: list[float | None] = [*settings, None]
    return quantity_rows.Quantity(
        name=name,
        statistic=statistic,
        value=steps[middle],
        low=settings[max(0, low - 1)],  # nothing was tried between two settings
        high=steps[high],
        above=settings[-1],
        n=measured.n,
    )


def pattern(measured: Pattern | None) -> quantity_rows.Pattern | None:
    """In grey values of a byte."""
    if measured is None:
        return None
    rows = np.rint(255 * np.clip(measured.values, 0.0, 1.0)).astype(int).tolist()
    return quantity_rows.Pattern(title=measured.title, rows=rows)


def fragile(measured: Fragile | None) -> quantity_rows.Fragile | None:
    if measured is None:
        return None
    return quantity_rows.Fragile(at=measured.at, count=measured.count, ids=list(measured.ids))


def curves(measurement: Measurement, level: float = rates.LEVEL) -> dict[str, list[Point]]:
    """Points for a chart: figures with their intervals, and ROC curves."""
    return {
        name: _roc(line, level) if isinstance(line, Auc) else [_point(x, own, level) for x, own in line]
        for name, line in measurement.curves.items()
    }


def _point(x: float, outcome: Outcome, level: float) -> Point:
    own = estimate(outcome, level)
    return Point(x=x, estimate=own.estimate, low=own.low, high=own.high)


def _roc(outcome: Auc, level: float, points: int = 60) -> list[Point]:
    """The ROC curve at about evenly spaced places of a logarithmic axis, from the first false positive on.

    Every third place has an interval, with the threshold's error: enough for a band.
    """
    false, true = ranking.roc(outcome.scores, outcome.is_member)
    n = int((~outcome.is_member).sum())
    wanted = np.unique(np.round(np.geomspace(1, n, min(points, n))).astype(int)) / n
    # the best rate of the curve that stays within each false positive rate
    last = np.searchsorted(false, wanted + 1e-12, side="right") - 1
    found = []
    for at, (x, position) in enumerate(zip(wanted, last, strict=True)):
        rate, band = float(true[position]), None
        if at % 3 == 0 and x < 1:
            band = ranking.tpr_at_fpr(outcome.scores, outcome.is_member, float(x), level)
        low, high = (None, None) if band is None else (min(band.low, rate), max(band.high, rate))
        found.append(Point(x=float(x), estimate=rate, low=low, high=high))
    return found
