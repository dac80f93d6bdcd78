"""Scores of members and others -> the two rows of an attacker, with intervals, changes, parts and what to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..access import Flag
from ..measurement import Auc, Bools, Comparison, Floats, MeasuredPart, Measurement, Outcome, ThreatModel, TprAtFpr
from ..preparation import Results
from ..statistics import ranking
from ..statistics.power import detectable_auc
from .risk import Figures

FPR = 0.01  # false positive rate at which the true positive rate is reported
AUC_DETAIL = "auc"
NO_MEMBERS = "the data has no training records (x_train, y_train) to tell apart from others"


@dataclass(frozen=True)
class Beside:
    """What a figure is compared with.

    Args:
        baseline: name of a model.
        scores: float [n], of the same records.
        flags: why they may be too optimistic.
    """

    baseline: str
    scores: Floats
    flags: tuple[str, ...] = ()


def figure(scores: Floats, is_member: Bools, metric: str) -> Outcome | None:
    """The AUC, or the true positive rate; None with too few non-members to tell that."""
    if metric == AUC_DETAIL:
        return Auc(scores, is_member)
    return TprAtFpr(scores, is_member, FPR) if FPR * int((~is_member).sum()) + 1e-9 >= 1 else None


def rows(
    figures: Figures,
    words: str,
    scores: Mapping[str, Floats],
    headline: str,
    is_member: Bools,
    threat: ThreatModel,
    *,
    beside: tuple[Beside, ...] = (),
    skipped: Mapping[str, str] | None = None,
    what: str = "non-members",
    flags: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> list[Measurement]:
    """Both rows.

    Args:
        words: what the figures are the result of.
        scores: by name, float [n]; headline: the one that the figures are of, chosen beforehand or on shadows.
        skipped: parts that did not run, each with its reason.
        what: the others are, in the plural.
    """
    few = f"{int((~is_member).sum())} {what} are too few for a false positive rate of 1 %"
    told = (*notes, _unseen(is_member, what))
    found = []
    for metric, detail in ((figures.tpr, ""), (figures.auc, AUC_DETAIL)):
        own = figure(scores[headline], is_member, detail)
        compared = tuple(
            Comparison(one.baseline, own, theirs, flags=one.flags)
            for one in beside
            if own is not None and (theirs := figure(one.scores, is_member, detail)) is not None
        )
        parts = [
            MeasuredPart(name, figure(one, is_member, detail), headline=name == headline)
            for name, one in scores.items()
        ]
        parts += [MeasuredPart(name, None, skipped=why) for name, why in (skipped or {}).items()]
        found.append(
            Measurement(
                metric,
                words,
                own,
                threat,
                reason=few if own is None else None,
                detail=detail,
                setting={} if detail else {"fpr": FPR},
                comparisons=compared,
                parts=tuple(parts),
                curves={} if detail else {"roc": Auc(scores[headline], is_member)},
                notes=told,
                flags=flags,
            )
        )
    return found


def unmeasured(figures: Figures, words: str, reason: str) -> list[Measurement]:
    """Both rows, without a figure."""
    return [
        Measurement(figures.tpr, words, None, reason=reason, setting={"fpr": FPR}),
        Measurement(figures.auc, words, None, reason=reason, detail=AUC_DETAIL),
    ]


def doubts(results: Results, blind: np.ndarray[Any, Any] | None, is_member: Bools) -> tuple[tuple[str, ...], list[str]]:
    """Trust flags and notes that membership figures of this model share, whoever attacks.

    Args:
        blind: float [n], scores of a classifier that never asks a model; None: not looked at.
    """
    model, scope = results.model, results.scope
    flags, notes = set(results.flags(model.name)), []
    if model.parent is not None and (scope.shadows_differ or model.undeclared):
        flags.add(Flag.SHADOWS_DIFFER.value)
    if Flag.REPEATED_MEMBERS.value in dict(scope.data.doubts):
        flags.add(Flag.REPEATED_MEMBERS.value)
    if blind is not None:
        found = ranking.auc(blind, is_member, level=0.99)
        if found.low > 0.5:
            flags.add(Flag.DISTRIBUTION_SHIFT.value)
            notes.append(
                f"Not attributable to membership alone: a classifier that never saw the model tells the two sets apart "
                f"(AUC {found.estimate:.3f}, 99 % interval [{found.low:.3f}, {found.high:.3f}])."
            )
    if model.void is not None:
        notes.append(model.void)
    return tuple(sorted(flags)), notes


def _unseen(is_member: Bools, what: str) -> str:
    members, others = int(is_member.sum()), int((~is_member).sum())
    return (
        f"Of {members} members and {others} {what}: an AUC below {detectable_auc(members, others):.3f} would not be "
        "told from no leak."
    )
