"""Scores of members and others -> the two rows of an attacker, with intervals, changes, parts and what to know."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...targets.data.data import Data
from ..access import Access, Flag
from ..attack import Attack, Run
from ..case import Evidence
from ..measurement import Auc, Bools, Comparison, Floats, MeasuredPart, Measurement, Outcome, ThreatModel, TprAtFpr
from ..membership.preparations import BlindScores
from ..membership.risk import MEMBERSHIP
from ..preparation import Audited, Need, Ran, Results, Scope
from ..risk import Risk
from ..statistics import ranking
from ..statistics.power import detectable_auc
from .risk import Figures

FPR = 0.01  # false positive rate at which the true positive rate is reported
AUC_DETAIL = "auc"
NO_MEMBERS = "the data has no training records (x_train, y_train) to tell apart from others"


class OnMembers(Attack):
    """An attack on the members among the records of the membership audit, once on every model."""

    risk: ClassVar[Risk] = MEMBERSHIP
    access: ClassVar[Access] = Access.SCORES

    @abstractmethod
    def run_on(self, model: Audited, scope: Scope) -> Run:
        """The run on a model of an audit that the attack is fit for."""

    def unfit(self, scope: Scope) -> str | None:
        return "no training records" if scope.data.members is None else None

    def usual(self, data: Data) -> bool:
        return data.members is not None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        return () if self.unfit(scope) is not None else (self.run_on(model, scope),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        return (*super().reads(model, scope), *(() if self.unfit(scope) is not None else (BlindScores(),)))

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", AUC_DETAIL)


def why_not(results: Results) -> str:
    """The reason why there is no evidence on the model itself."""
    data = results.scope.data
    return NO_MEMBERS if data.members is None and not data.regression else results.why(Ran(results.model.name))


@dataclass(frozen=True)
class Beside:
    """What a figure is compared with.

    Args:
        baseline: name of a model.
        scores: float [n] of the same records, by the name of the figure's own; without it there is no comparison.
        flags: why they may be too optimistic.
    """

    baseline: str
    scores: Mapping[str, Floats]
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
    headlines: tuple[str, str],
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
        words: what the figures are the result of, with {} for the name of the score.
        scores: by name, float [n]; headlines: those that the two figures are of, chosen beforehand or on shadows.
        skipped: parts that did not run, each with its reason.
        what: the others are, in the plural.
    """
    few = f"{int((~is_member).sum())} {what} are too few for a false positive rate of 1 %"
    told = (*notes, _unseen(is_member, what))
    found = []
    for metric, detail, headline in zip(figures.both, ("", AUC_DETAIL), headlines, strict=True):
        own = figure(scores[headline], is_member, detail)
        changes = tuple(
            Comparison(one.baseline, own, theirs, flags=one.flags)
            for one in beside
            if own is not None
            and headline in one.scores
            and (theirs := figure(one.scores[headline], is_member, detail)) is not None
        )
        parts = [
            MeasuredPart(name, figure(one, is_member, detail), headline=name == headline)
            for name, one in scores.items()
        ]
        parts += [MeasuredPart(name, None, skipped=why) for name, why in (skipped or {}).items()]
        found.append(
            Measurement(
                metric,
                words.format(headline),
                own,
                threat,
                reason=few if own is None else None,
                detail=detail,
                setting={} if detail else {"fpr": FPR},
                comparisons=changes,
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


def doubts(
    results: Results, evidence: Evidence | None, is_member: Bools, of: Callable[[Floats], Floats] = lambda every: every
) -> tuple[tuple[str, ...], list[str]]:
    """Trust flags and notes of membership figures of this model: those of its evidence, and what all attackers share.

    Args:
        of: from the blind scores of all records those that belong to `is_member`.
    """
    model, scope = results.model, results.scope
    flags, notes = set(results.flags(model.name)), []
    flags |= {flag for one in ({} if evidence is None else evidence.flags).values() for flag in one}
    blind = results.prepared(BlindScores())
    if model.parent is not None and (scope.shadows_differ or model.undeclared):
        flags.add(Flag.SHADOWS_DIFFER.value)
    if Flag.REPEATED_MEMBERS.value in dict(scope.data.doubts):
        flags.add(Flag.REPEATED_MEMBERS.value)
    if blind is not None:
        found = ranking.auc(of(blind.arrays["scores"]), is_member, level=0.99)
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


def scores_of(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Floats]:
    """The scores among the arrays of evidence, by name."""
    return {name.removeprefix("score/"): one for name, one in sorted(arrays.items()) if name.startswith("score/")}


def compared(results: Results) -> tuple[Beside, ...]:
    """The same attack on the models that this one is compared with."""
    return tuple(
        Beside(name, scores_of(other.arrays), tuple(sorted(results.flags(name))))
        for name in results.model.baselines
        if (other := results.evidence(Ran(name))) is not None
    )
