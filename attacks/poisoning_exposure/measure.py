"""Evidence of poisoned trainings -> how the model moves with the share, beside the same poisoned dense model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..access import Flag
from ..case import Evidence
from ..measurement import (
    Bools,
    Comparison,
    Crossed,
    MeasuredPart,
    Measurement,
    Quantity,
    Rate,
    ThreatModel,
)
from ..preparation import Ran, Results
from ..risk import Metric
from ..statistics.crossed import crossed_change
from ..statistics.rates import paired_change
from .calibration import BITS
from .planting import PATCH, RANDOM, TARGETED, Poisoning
from .risk import CALIBRATED_ACCURACY, PATCH_SUCCESS, RANDOM_ACCURACY, TARGETED_ERROR

FLIPS, PATCHED, CALIBRATION = "random-flips", "patch", "calibration"  # details of findings
BROKEN = 0.25  # of the accuracy, surely gone: what breaks a calibration
JUDGED_RECORDS = 2  # poisoned calibration records that the figure is of
CURVES = {TARGETED: "targeted error", RANDOM: "accuracy", PATCH: "patch success"}
Outcomes = Callable[[Evidence, Sequence[int]], Bools]


def measure_exposure(
    results: Results, poisoning: Poisoning, judged: int, counts: Sequence[int], why_not: str | None
) -> list[Measurement]:
    """Of each sort one figure at the judged share, and one of the model's own calibration.

    Args:
        judged: position in the shares.
        why_not: why there is no evidence; None: the results say.
    """
    evidence = results.evidence(Ran(results.model.name))
    sorts = ((TARGETED, TARGETED_ERROR, ""), (RANDOM, RANDOM_ACCURACY, FLIPS), (PATCH, PATCH_SUCCESS, PATCHED))
    if evidence is None:
        reason = why_not or results.why(Ran(results.model.name))
        blank = [Measurement(metric, f"{sort} poison", None, reason=reason, detail=at) for sort, metric, at in sorts]
        return [*blank, Measurement(CALIBRATED_ACCURACY, "calibration", None, reason=reason, detail=CALIBRATION)]
    found = [_of(results, evidence, poisoning, judged, *one) for one in sorts]
    return [*found, _calibration(results, evidence, counts)]


def _of(
    results: Results, evidence: Evidence, poisoning: Poisoning, judged: int, sort: str, metric: Metric, detail: str
) -> Measurement:
    if sort not in poisoning.sorts:
        why = "not applicable: the patch is a square of an image, and these records are none"
        return Measurement(metric, f"{sort} poison", None, reason=why, detail=detail)
    names, counts = results.scope.data.class_names, evidence.summary["counts"][sort]
    source, target = (names[one] for one in evidence.summary["pair"])
    outcomes, rows = _outcomes(results, sort), poisoning.rows(sort, judged)
    if not outcomes(evidence, rows).shape[1]:
        why = f"no evaluation record is of class {source}" if sort == TARGETED else f"all are of class {target}"
        return Measurement(metric, f"{sort} poison", None, reason=why, detail=detail)
    share, own = poisoning.shares[judged], Crossed(outcomes(evidence, rows))
    words = {
        TARGETED: f"records of {source} taken for {target}, labels of {counts[judged]} of {source} flipped to it",
        RANDOM: f"records right, {counts[judged]} labels flipped at random",
        PATCH: f"records with the patch taken for {target}, {counts[judged]} training records with it",
    }
    others = {one: found for one in results.model.baselines if (found := results.evidence(Ran(one))) is not None}
    comparisons = tuple(
        Comparison(name, own, Crossed(outcomes(other, rows)), flags=tuple(sorted(results.flags(name))))
        for name, other in others.items()
    )
    points = [(0.0, -1), *((one, at) for at, one in enumerate(poisoning.shares))]
    return Measurement(
        metric,
        words[sort],
        own,
        _threat(sort, share, counts[judged], poisoning.repetitions),
        detail=detail,
        setting={"share": share, "trainings": poisoning.repetitions},
        comparisons=comparisons,
        curves={CURVES[sort]: [(x, Crossed(outcomes(evidence, poisoning.rows(sort, at)))) for x, at in points]},
        quantities=_by_training(outcomes(evidence, rows)),
        notes=(
            *_capped(sort, counts, poisoning, source),
            *_cured(results, metric, own, comparisons),
            "The interval holds for other records and other trainings alike; more `repetitions` narrow it.",
            *(results.scope.shadow_notes if results.model.parent is not None else ()),
        ),
        flags=_flags(results),
    )


def _outcomes(results: Results, sort: str) -> Outcomes:
    """From evidence and rows of models, bool [models, records] of what the figure of a sort counts."""

    def of(evidence: Evidence, rows: Sequence[int]) -> Bools:
        labels = results.scope.data.non_members.y.numpy()[evidence.arrays["ids"]]
        source, target = evidence.summary["pair"]
        predicted = evidence.arrays["predicted"][list(rows)]
        if sort == RANDOM:
            return np.asarray(predicted == labels)
        if sort == TARGETED:
            return np.asarray(predicted[:, labels == source] == target)
        return np.asarray(evidence.arrays["triggered"][list(rows)][:, labels != target] == target)

    return of


def _by_training(successes: Bools) -> tuple[Quantity, ...]:
    each, (models, n) = successes.mean(1), successes.shape
    named = (("lowest", each.min()), ("largest", each.max())) if models > 1 else ()
    return tuple(Quantity("share in one training", which, float(value), n) for which, value in named)


def _capped(sort: str, counts: Sequence[int], poisoning: Poisoning, source: str) -> list[str]:
    if sort != TARGETED or len(set(counts)) == len(counts):
        return []
    share = next(one for one, count in zip(poisoning.shares, counts, strict=True) if count == counts[-1])
    return [f"From {100 * share:g} % on all {counts[-1]} training records of {source} are flipped: there are no more."]


def _cured(results: Results, metric: Metric, own: Crossed, comparisons: Sequence[Comparison]) -> list[str]:
    """Whether compression cures or amplifies, against the same poisoned parent."""
    if results.model.is_dense or not comparisons:
        return []
    first = comparisons[0]
    assert isinstance(first.theirs, Crossed)
    change = crossed_change(own.successes, first.theirs.successes, results.level)
    worse, better = (change.low > 0, change.high < 0)
    if metric.better == "higher":
        worse, better = better, worse
    verb = "amplifies the poison" if worse else "cures some of the poison" if better else "neither cures nor amplifies"
    ends = f"{100 * change.estimate:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return [f"Compression {verb}, as far as these trainings show: {ends} against the same poisoned {first.baseline}."]


def _calibration(results: Results, evidence: Evidence, counts: Sequence[int]) -> Measurement:
    attack = "the dense model with activations over ranges calibrated on poisoned records"
    if "calibrated" not in evidence.arrays:
        why = "not applicable: no activations of it are calibrated on records of numbers"
        return Measurement(CALIBRATED_ACCURACY, attack, None, reason=why, detail=CALIBRATION)
    correct, summary = evidence.arrays["calibrated"].astype(bool), evidence.summary
    methods, size = summary["methods"], summary["calibration"]
    judged = min(list(counts).index(JUDGED_RECORDS), correct.shape[2] - 1)
    own, parent = Rate(correct[0, 0, judged]), results.model.baselines[0]
    unrounded = Rate(evidence.arrays["float"].astype(bool))
    parts = [
        MeasuredPart(
            f"{method}, {bits}-bit activations",
            Rate(correct[width, at, judged]),
            headline=width == at == 0,
            counted=width == at == 0,
        )
        for width, bits in enumerate(BITS)
        for at, method in enumerate(methods)
    ]
    return Measurement(
        CALIBRATED_ACCURACY,
        f"{methods[0]} calibration of {BITS[0]}-bit activations, {counts[judged]} of {size} records poisoned",
        own,
        ThreatModel(None, "slips records into the calibration set", f"{counts[judged]} of {size} records"),
        detail=CALIBRATION,
        setting={"poisoned": counts[judged], "of": size},
        comparisons=(Comparison(parent, own, unrounded, flags=tuple(sorted(results.flags(parent)))),),
        parts=tuple(parts),
        curves={
            f"{method}, {bits}-bit": [(float(counts[k]), Rate(correct[width, at, k])) for k in range(correct.shape[2])]
            for width, bits in enumerate(BITS)
            for at, method in enumerate(methods)
        },
        notes=(_breaking(correct, methods, counts, size),),
        flags=_flags(results),
    )


def records_to_break(correct: Bools, counts: Sequence[int]) -> int | None:
    """The fewest poisoned calibration records after which a quarter of the accuracy is surely gone; None: more.

    Args:
        correct: bool [counts, n], the first of no poisoned record.
    """
    enough = BROKEN * float(correct[0].mean())
    for count, after in zip(counts, correct, strict=False):
        if count and paired_change(after, correct[0]).high < -enough:
            return count
    return None


def _breaking(correct: Bools, methods: Sequence[str], counts: Sequence[int], size: int) -> str:
    told = []
    for width, bits in enumerate(BITS):
        found = []
        for at, method in enumerate(methods):
            needed = records_to_break(correct[width, at], counts)
            most = counts[correct.shape[2] - 1]
            found.append(f"{method} {needed if needed is not None else f'more than {most}'}")
        told.append(f"{bits}-bit activations: {', '.join(found)}")
    return f"Records of {size} that surely cost a quarter of the accuracy: {'; '.join(told)}. Weights stay as they are."


def _flags(results: Results) -> tuple[str, ...]:
    found = set(results.flags(results.model.name))
    if results.scope.shadows_differ:
        found.add(Flag.SHADOWS_DIFFER.value)
    return tuple(sorted(found))


def _threat(sort: str, share: float, count: int, repetitions: int) -> ThreatModel:
    can = {
        RANDOM: "changes labels of training records without looking",
        TARGETED: "changes labels of training records of one class",
        PATCH: "puts a patch on training images and changes their labels; shows images with it later",
    }
    budget = f"{count} training records ({100 * share:g} %); {repetitions} trainings"
    return ThreatModel(None, can[sort], budget)
