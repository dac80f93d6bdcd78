"""What the rows of an audit owe to each other: names that exist, numbers of records there are, shares that are shares.

A model of a row cannot see the others. Whatever is drawn or judged from a file that came from elsewhere rests on this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from ...attacks.risk import MEAN_SQUARED_ERROR, Metric
from .policy_rows import Gate
from .row import DIGEST
from .rows import SLACK, Audit, Change, Estimate, Part

Figures = Estimate | Part | Change


def contradiction(audit: Audit) -> str | None:
    """The first thing in an audit that its other rows rule out, as a sentence; None: they agree."""
    found = [*_digests(audit), *_names(audit), *_counts(audit)]
    for owner, metric, one in _figures(audit):
        found += [f"{owner}: {fault}" for fault in _share_fault(metric, one)]
    return next(iter(found), None)


def _digests(audit: Audit) -> Iterator[str]:
    owned = [("the plan", audit.plan_digest), ("the data", audit.data.digest)]
    owned += [(f"{row.name!r:.80}", row.digest) for row in audit.candidates]
    owned += [(f"{row.id!r:.80}", row.evidence_digest) for row in audit.findings if row.evidence_digest is not None]
    yield from (f"the digest of {owner} is no sha256" for owner, digest in owned if not re.fullmatch(DIGEST, digest))


def _names(audit: Audit) -> Iterator[str]:
    candidates, findings = [row.name for row in audit.candidates], [row.id for row in audit.findings]
    for what, names in (("candidates", candidates), ("findings", findings), ("the release", audit.release)):
        if len(set(names)) < len(names):
            yield f"a name stands twice among {what}"
    owned = [("finding", row.id, row.candidate) for row in audit.findings]
    owned += [("gate", row.rule, row.candidate) for row in audit.policy]
    for sort, name, wanted in owned:
        if wanted not in candidates:
            yield f"{sort} {name!r:.80} speaks of {wanted!r:.80}, which is no candidate"
    for finding in audit.findings:
        asked = [one.model for one in finding.transfers]
        if len(set(asked)) < len(asked) or finding.candidate in asked or not set(asked) <= set(candidates):
            yield f"finding {finding.id!r:.80} was asked of a model twice, of its own, or of one that is no candidate"
        if not finding.id.startswith(f"{finding.candidate}/"):
            yield f"finding {finding.id!r:.80} is not named after its candidate"
    named = [row.finding for row in audit.policy] + [row.worst_risk for row in audit.candidates]
    yield from (f"{one!r:.80} is no finding" for one in named if one is not None and one not in findings)


def _counts(audit: Audit) -> Iterator[str]:
    data = audit.data
    everybody = data.non_members + (data.members or 0) + (data.forgotten or 0) + (data.transfer or 0)
    if data.evaluation + data.attacker > data.non_members:
        yield "evaluation and the attacker's own are more records than the non-members"
    for row in audit.candidates:
        own = [row.quality, *([] if row.disagreement is None else [row.disagreement])]
        own += [] if row.classes is None else [row.classes.balanced_accuracy, *row.classes.recalls]
        if any(one.n > data.non_members for one in own):
            yield f"{row.name!r:.80} was measured on more than the {data.non_members} non-members"
        if row.footprint.parameters is not None and (row.footprint.nonzero_parameters or 0) > row.footprint.parameters:
            yield f"{row.name!r:.80} has more non-zero parameters than parameters"
    for finding in audit.findings:
        measured = finding.estimate is not None and finding.estimate.unsearched is None  # a search counts other things
        own = [*([finding.estimate] if finding.estimate is not None and measured else []), *finding.who_is_hit]
        own = own if audit.metrics[finding.metric].of == "records" else []
        counts = [one.n for one in own] + [one.n for one in finding.quantities] + [one.n for one in finding.transfers]
        if max([0, *counts]) > everybody:
            yield f"{finding.id!r:.80} rests on more records than the data has ({everybody})"
        fell = finding.fragile
        if fell is not None and (fell.count > everybody or max(fell.ids) >= data.non_members):
            yield f"{finding.id!r:.80} names records as fragile that there are not"
        if not {*finding.worse} <= {row.name for row in finding.who_is_hit}:
            yield f"{finding.id!r:.80} calls a class or group worse that it says nothing of"


def _figures(audit: Audit) -> Iterator[tuple[str, Metric, Figures | Gate]]:
    """Every figure that a metric stands behind, with whose it is."""
    for row in audit.candidates:
        changes = [one for one in (row.quality_change, row.quality_change_dense) if one is not None]
        qualities: list[Figures] = [row.quality, *changes]
        yield from ((row.name, row.quality_metric, one) for one in qualities)
        for draw in row.draws:
            yield from ((row.name, audit.metrics[name], one) for name, one in draw.figures.items())
    for finding in audit.findings:
        own: Iterable[Figures] = (*finding.changes, *finding.parts, *finding.who_is_hit)
        yield from ((finding.id, audit.metrics[finding.metric], one) for one in own)
        if finding.estimate is not None:
            yield finding.id, audit.metrics[finding.metric], finding.estimate
    for gate in audit.policy:
        if gate.rule in audit.metrics:
            yield gate.candidate, audit.metrics[gate.rule], gate


def _share_fault(metric: Metric, one: Figures | Gate) -> Iterator[str]:
    """A share lies in [0, 1], a difference of two in [-1, 1]; the ends of its interval, which may be a normal error's,
    go no further than twice as far. A mean squared error may be any share of the variance.
    """
    of_two = isinstance(one, Change) or (isinstance(one, Gate) and one.compares == "change")
    value = one.value if isinstance(one, Gate) else one.difference if isinstance(one, Change) else one.estimate
    ends = [end for end in (one.low, value, one.high) if end is not None]
    if ends != sorted(ends) and isinstance(one, Gate):
        yield f"the gate on {metric.subject} has a value outside its interval"
    least, most = (-1.0, 1.0) if of_two else (0.0, 1.0)
    if metric.name == MEAN_SQUARED_ERROR.name:
        least, most = (-math.inf, math.inf) if of_two else (0.0, math.inf)
    beyond = [end for end in ends if not (1 + of_two) * least - SLACK <= end <= (1 + of_two) * most + SLACK]
    if value is not None and not least - SLACK <= value <= most + SLACK:
        beyond.append(value)
    if beyond and metric.unit != "number":
        yield f"{beyond[0]:g} is no {'difference' if of_two else 'value'} of {metric.subject}, which is a share"
