"""Evidence of model inversion -> whom what was rebuilt resembles, beside what is rebuilt without the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..access import Access, Flag
from ..case import Evidence
from ..measurement import Auc, Comparison, MeasuredPart, Measurement, Outcome, Quantity, Rate, ThreatModel
from ..preparation import Ran, Results
from ..risk import Metric
from ..statistics.ranking import auc
from .risk import NEAR, RECOGNISED, SINGLED_OUT

SINGLED_DETAIL, RECOGNISED_DETAIL = "nearest", "recognised"  # details of findings
WHITE_BOX = "white-box"
FOUND = (WHITE_BOX, "scores")  # ways, the strongest first
MEAN, OTHER = "mean of the attacker's records", "another network"
CONTROLS = (MEAN, OTHER)
WAYS = {WHITE_BOX: "by gradients through the twin", "scores": "by scores alone, without gradients"}


def measure_inversion(results: Results, unfit: str | None, queries: int) -> list[Measurement]:
    """Three figures.

    Args:
        unfit: why it does not apply; queries: for each class, by scores alone.
    """
    model = results.model
    evidence = results.evidence(Ran(model.name)) if unfit is None else None
    figures: tuple[tuple[Metric, str, Callable[[Evidence, str], Outcome | None]], ...] = (
        (NEAR, "", _near),
        (SINGLED_OUT, SINGLED_DETAIL, lambda found, name: Rate(found.arrays[f"nearest/{name}"])),
        (RECOGNISED, RECOGNISED_DETAIL, _recognised),
    )
    if evidence is None:
        reason = results.why(Ran(model.name)) if unfit is None else f"not applicable: {unfit}"
        return [
            Measurement(metric, "inputs rebuilt for each class", None, reason=reason, detail=detail)
            for metric, detail, _ in figures
        ]
    headline = evidence.summary["found"][0]
    others = {name: one for name in model.baselines if (one := results.evidence(Ran(name))) is not None}
    flags, notes = _doubts(results, evidence)
    found = []
    for metric, detail, of in figures:
        own = of(evidence, headline)
        assert own is not None, "it ran"
        parts = [
            MeasuredPart(name, outcome, headline=name == headline, counted=name == headline)
            for name in (*evidence.summary["found"], *CONTROLS)
            if (outcome := of(evidence, name)) is not None
        ]
        compared = tuple(
            Comparison(name, own, theirs, flags=tuple(sorted(results.flags(name))))
            for name, other in others.items()
            if headline in other.summary["found"] and (theirs := of(other, headline)) is not None
        )
        found.append(
            Measurement(
                metric,
                f"an input rebuilt for each class {WAYS[headline]}",
                own,
                _threat(headline, queries),
                detail=detail,
                comparisons=compared,
                parts=tuple(parts),
                curves={} if detail else {"roc": own} if isinstance(own, Auc) else {},
                groups=_by_class(results, evidence, headline) if not detail else {},
                quantities=() if detail else _sure(evidence, headline),
                notes=(*_of(metric, evidence), *notes),
                flags=flags,
            )
        )
    return found


def _near(evidence: Evidence, name: str) -> Outcome:
    return Auc(evidence.arrays[f"near/{name}"], np.asarray(evidence.arrays["is_member"], dtype=bool))


def _recognised(evidence: Evidence, name: str) -> Outcome | None:
    found = evidence.arrays.get(f"recognised/{name}")
    return None if found is None else Rate(found)


def _by_class(results: Results, evidence: Evidence, name: str) -> Mapping[str, Outcome]:
    """Of each class with two records on either side."""
    arrays, names = evidence.arrays, results.scope.data.class_names
    near, is_member, found = arrays[f"near/{name}"], np.asarray(arrays["is_member"], dtype=bool), dict[str, Outcome]()
    for one in arrays["classes"].tolist():
        of = arrays["label"] == one
        if min(int((of & is_member).sum()), int((of & ~is_member).sum())) >= 2:
            found[names[one]] = Auc(near[of], is_member[of])
    return found


def _sure(evidence: Evidence, headline: str) -> tuple[Quantity, ...]:
    sure, right = (
        evidence.arrays[f"sure/{headline}"],
        evidence.arrays[f"answer/{headline}"] == evidence.arrays["classes"],
    )
    return (
        Quantity("probability of the class", "median", float(np.median(sure)), len(sure)),
        Quantity("classes reached", "share", float(right.mean()), len(right)),
    )


def _of(metric: Metric, evidence: Evidence) -> tuple[str, ...]:
    """What to know of one of the figures."""
    if metric is RECOGNISED:
        accuracy = 100 * evidence.summary["judge_accuracy"]
        return (f"The network that recognises was trained on the attacker's records and is {accuracy:.1f} % right.",)
    if metric is SINGLED_OUT:
        return ("Half is chance: of each class as many members as others are looked at.",)
    return ("What is rebuilt without the model is among the parts: what that finds, the model does not give away.",)


def _doubts(results: Results, evidence: Evidence) -> tuple[tuple[str, ...], list[str]]:
    """Trust flags and notes that all figures share."""
    flags, notes = set(results.flags(results.model.name)), []
    flags |= {flag for raised in evidence.flags.values() for flag in raised}
    for name in CONTROLS:
        one = auc(evidence.arrays[f"near/{name}"], evidence.arrays["is_member"], level=0.99)
        if one.low > 0.5:
            flags.add(Flag.DISTRIBUTION_SHIFT.value)
            notes.append(
                f"Not attributable to the model alone: what is rebuilt without it ({name}) is nearer to members, too "
                f"(AUC {one.estimate:.3f}, 99 % interval [{one.low:.3f}, {one.high:.3f}])."
            )
    return tuple(sorted(flags)), notes


def _threat(headline: str, queries: int) -> ThreatModel:
    knowledge = "owns records of the same kind that were not trained on"
    if headline == WHITE_BOX:
        return ThreatModel(Access.WHITE_BOX, f"has the file; {knowledge}", "gradients")
    return ThreatModel(Access.SCORES, knowledge, f"{queries:,} queries for each class")
