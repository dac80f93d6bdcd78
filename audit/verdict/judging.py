"""The verdict that thresholds on findings give.

A gate is one limit applied to one candidate. It passes when the whole 95 % interval is within the limit, fails when the
whole interval is beyond it, and is inconclusive otherwise; a trust flag turns a pass into inconclusive and never
softens a fail, but for a flag on the parent's figure, which leaves a change open both ways. A parent that has no room
to fall leaves it open too. What is inconclusive says what would settle it. Fails are corrected for the number of gates
in the report (Holm 1979); passes need no correction, because a candidate passes only if all of its gates do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

from ...attacks.risk import MEAN_SQUARED_ERROR, PROMISES, QUALITIES, Metric
from ...targets.errors import InputError, UnsafeInput
from ...targets.serving.statement import RowVerdict, Verdict
from ..schema import wording
from ..schema.policy_rows import Compares, Gate, margin
from ..schema.rows import Audit, Candidate, Change, Estimate, Finding
from .beside import beside
from .fitting import DEFAULT, follows_from_plan, nothing_to_judge, policy_of
from .gate_sentences import HOPELESS, cannot_fail, doubt, gate_sentence, records_needed, setting, what_settles
from .lineage_gate import lineage_gate
from .overall import deciding_gate, overall
from .policy import EXACT, Policy
from .promise_gate import promise_gate

LEVEL = 0.025  # one-sided: the whole of a two-sided 95 % interval lies beyond the limit
Z = NormalDist().inv_cdf(1 - LEVEL)
_QUALITIES = {metric.name for metric in QUALITIES}


def judge(low: float, high: float, limit: float, better: str, flags: Sequence[str] = ()) -> Verdict:
    """The verdict on the interval [low, high] of a value, or of a change, against its limit."""
    if better == "lower":
        low, high, limit = -high, -low, -limit
    if high < limit - EXACT:
        return "fail"
    return "pass" if low >= limit - EXACT and not flags else "inconclusive"


def no_room(change: Change, limit: float) -> bool:
    """Whether the parent could lose all it has, or all that a guesser has not, and keep the limit.

    As far as is known: its interval lies within the limit, or its figure does, from which no candidate could lose more.
    """
    if change.baseline_high is None or change.floor is None:
        return False
    return min(change.baseline_high, change.baseline_estimate) <= change.floor + abs(limit) + EXACT


def beyond(value: float, low: float, high: float, limit: float, better: str) -> float:
    """One-sided p-value of "the true value keeps the limit", from a 95 % interval; normal error on the limit's side.

    An interval of no width leaves no doubt: 0 when the value is beyond the limit, else 1.
    """
    if better == "lower":
        value, low, high, limit = -value, -high, -low, -limit
    gap = limit - value
    error = ((high - value) if gap > 0 else (value - low)) / Z
    if error <= 0:
        return 0.0 if gap > EXACT else 1.0
    return NormalDist().cdf(-gap / error)


@dataclass(frozen=True)
class Judgement:
    """Copies of the rows with their verdicts filled in, and the verdict on the whole release."""

    gates: list[Gate]
    candidates: list[Candidate]
    findings: list[Finding]
    verdict: Verdict
    deciding: list[str]
    beside: list[str]  # what a reader of the verdict must know that it does not say


def apply_policy(
    candidates: Sequence[Candidate],
    findings: Sequence[Finding],
    policy: Policy,
    release: Sequence[str],
    metrics: Mapping[str, Metric],
) -> Judgement:
    """Judges every candidate; the overall verdict covers those named in `release`.

    Dense models are what candidates are compared with, and are not judged. A finding is judged when the policy limits
    its metric and the finding is `gateable`. A limited metric that was not measured cannot pass.

    Raises:
        InputError: the policy limits a figure that is not among `metrics`.
    """
    unknown = sorted({*policy.changes, *policy.absolutes} - set(metrics))
    if unknown:
        raise InputError(f"The policy {policy.name!r} limits {unknown[0]!r}, which this audit knows nothing of.")
    gates, rows = _judged(candidates, findings, policy, metrics)
    judged = [_judged_finding(finding, gates, metrics) for finding in findings]
    verdict, deciding = overall(rows, gates, release, metrics, nothing_to_judge(policy))
    usual = rows
    if policy.changes != DEFAULT.changes or policy.absolutes:
        usual = _judged(candidates, findings, DEFAULT, metrics)[1]
    return Judgement(gates, rows, judged, verdict, deciding, beside(rows, findings, policy, usual, release, metrics))


def _judged(
    candidates: Sequence[Candidate], findings: Sequence[Finding], policy: Policy, metrics: Mapping[str, Metric]
) -> tuple[list[Gate], list[Candidate]]:
    drafts: list[_Draft] = []
    for candidate in candidates:
        if candidate.role != "dense":
            lineage = lineage_gate(candidate)
            promise = promise_gate(candidate, policy)
            drafts += [_Draft(gate, None) for gate in (lineage, promise) if gate is not None]
            drafts += _drafts(candidate, findings, policy, metrics)
    gates = _holm(drafts)
    return gates, [_judged_candidate(candidate, gates, metrics) for candidate in candidates]


def check_verdicts(audit: Audit, folder: Path) -> None:
    """That the verdicts in an audit.json follow from its own figures and limits, and the limits from its plan.

    Raises:
        UnsafeInput: they do not: somebody changed the file.
    """
    if not follows_from_plan(audit, folder):
        raise UnsafeInput(
            f"{folder / 'audit.json'} contradicts itself: the limits it names are not those of its plan, so it was "
            "changed after the audit. Run the audit again; what is computed is kept."
        )
    judged = rejudge(audit, policy_of(audit))
    ours = [judged.verdict, *(row.verdict for row in judged.candidates), *(row.verdict for row in judged.findings)]
    theirs = [audit.verdict, *(row.verdict for row in audit.candidates), *(row.verdict for row in audit.findings)]
    if ours != theirs:
        raise UnsafeInput(
            f"{folder / 'audit.json'} contradicts itself: its verdicts do not follow from its figures, so it was "
            "changed after the audit. Run the audit again; what is computed is kept."
        )


def rejudge(audit: Audit, policy: Policy, by: Literal["audit", "gate"] = "audit") -> Audit:
    """The same measurements under a policy: the audit's own, or another (`gate`). Nothing is computed again."""
    judgement = apply_policy(audit.candidates, audit.findings, policy, audit.release, audit.metrics)
    return audit.model_copy(
        update={
            "verdict": judgement.verdict,
            "deciding": judgement.deciding,
            "beside": judgement.beside,
            "candidates": judgement.candidates,
            "findings": judgement.findings,
            "policy": judgement.gates,
            "policy_name": policy.name,
            "policy_limits": policy.limits,
            "policy_from": by,
        }
    )


@dataclass(frozen=True)
class _Draft:
    """A gate before the correction for their number; `p_value` is None when nothing was measured."""

    gate: Gate
    p_value: float | None
    more: int | None = None  # than the records it rests on


def _drafts(
    candidate: Candidate, findings: Sequence[Finding], policy: Policy, metrics: Mapping[str, Metric]
) -> list[_Draft]:
    drafts = []
    own, limited = candidate.quality_metric.name, {*policy.changes, *policy.absolutes}
    limits: list[tuple[Compares, dict[str, float]]] = [
        ("change", policy.changes),
        ("absolute", policy.absolutes),
    ]
    for metric in metrics.values():
        if metric in PROMISES:
            continue  # see `promise_gate`
        of_values = metric.name == MEAN_SQUARED_ERROR.name
        if metric.name in _QUALITIES and of_values != (candidate.accuracy is None) and own in limited:
            continue  # accuracy and error are alternatives: each model is judged by its own
        ours = [one for one in findings if one.candidate == candidate.name and one.metric == metric.name]
        mine = [one for one in ours if one.gateable]
        why_not = [one for one in ours if one.estimate is None][:1]
        judged: Sequence[Finding | None] = mine or why_not or [None]
        judged = [None] if metric.name in _QUALITIES else judged
        for compares, by_metric in limits:
            if metric.name in by_metric:
                drafts += [_draft(candidate, one, metric, compares, by_metric[metric.name]) for one in judged]
        if metric.fails_beyond is not None and metric.name not in policy.absolutes:
            anyway = [_draft(candidate, one, metric, "absolute", metric.fails_beyond) for one in mine]
            drafts += [_whatever(draft) for draft in anyway if draft.gate.verdict == "fail"]
    return drafts


def _whatever(draft: _Draft) -> _Draft:
    """A limit that is no policy's own."""
    told = draft.gate.sentence.replace("; the policy asks for", "; under any policy without a limit of its own it is")
    return replace(draft, gate=draft.gate.model_copy(update={"sentence": told}))


def _draft(candidate: Candidate, finding: Finding | None, metric: Metric, compares: Compares, limit: float) -> _Draft:
    """One limit applied to a finding; to a figure of the model itself, or to a gap in the plan, when there is none."""
    change, why_not = None, None
    if metric.name in _QUALITIES:
        estimate, change = candidate.own_figure(metric.name)
        why_not = f"a figure of another sort of model: this one has {candidate.quality_metric.subject}"
    elif finding is None:
        estimate, why_not = None, "the plan has no such attack"
    else:
        estimate, why_not = finding.estimate, finding.reason
        change = finding.changes[0] if finding.changes else None
    subject = f"{candidate.name}: {metric.subject}{setting(finding)}"
    gate = Gate(
        candidate=candidate.name,
        rule=metric.name,
        finding=None if finding is None else finding.id,
        value=None,
        low=None,
        high=None,
        limit=limit,
        compares=compares,
        verdict="not-measured",
        p_value=None,
        sentence=f"{subject} was not measured ({why_not or 'no reason is recorded'}), and the policy limits it.",
    )
    judged: Estimate | Change | None = change if compares == "change" else estimate
    if estimate is None:
        return _Draft(gate, None)
    if judged is None:
        why = "no dense model is known to compare it with: name one, or a policy with absolute limits"
        if candidate.parent is not None:
            why = (
                f"nothing was measured alike on it and on {candidate.parent}, so that no change is known: add an "
                "attack that both can face (square needs answers only), or name a policy with absolute limits"
            )
        sentence = f"{subject} is {wording.estimate(estimate, metric)}, and {why}."
        return _Draft(gate.model_copy(update={"sentence": sentence}), None)
    better = metric.better
    flags = sorted({*candidate.flags, *(() if finding is None else finding.flags)})
    value = judged.difference if isinstance(judged, Change) else judged.estimate
    needed = None
    verdict = judge(judged.low, judged.high, limit, better, flags)
    sentence = gate_sentence(subject, metric, estimate, change, compares, limit) + doubt(flags)
    if isinstance(judged, Change):
        if judged.flags:
            verdict = "inconclusive"
            sentence += f" The figure of {judged.baseline} may be too optimistic ({', '.join(judged.flags)})."
        if better == "higher" and no_room(judged, limit):
            verdict = "inconclusive"
            floor = wording.figure(judged.baseline_estimate, metric)
            sentence += (
                f" {judged.baseline} itself is on the floor there ({floor}), so that no loss could be seen: "
                f"{judged.instead or 'measure it where the parent is better'}."
            )
    if verdict == "pass" and (hardly := cannot_fail(judged, limit, metric, candidate)) is not None:
        verdict = "inconclusive"
        sentence += f" {hardly}"
    if verdict == "inconclusive" and judge(judged.low, judged.high, limit, better) == "inconclusive":
        available = estimate.n if finding is None or finding.available is None else finding.available
        needed = records_needed(value, judged.low, judged.high, limit, estimate.n)
        sentence += what_settles(needed, estimate.n, available)
        hopeless = needed is not None and needed > HOPELESS * estimate.n
        if hopeless or not _may_settle(value, limit, flags, judged, metric):
            needed = None
    measured = {
        "value": value,
        "low": judged.low,
        "high": judged.high,
        "verdict": verdict,
        "needs_records": needed,
        "sentence": sentence,
    }
    p_value = beyond(value, judged.low, judged.high, limit, better)
    if isinstance(judged, Change) and limit == 0 and judged.p_value is not None:
        worse = value < 0 if better == "higher" else value > 0
        p_value = judged.p_value / 2 if worse else 1 - judged.p_value / 2  # the paired test is of this very limit
    return _Draft(gate.model_copy(update=measured), p_value, estimate.n + 1)


def _may_settle(value: float, limit: float, flags: Sequence[str], judged: Estimate | Change, metric: Metric) -> bool:
    """Whether a narrower interval would be a verdict: a pass under a flag is none, nor is anything on the floor."""
    if isinstance(judged, Change) and (judged.flags or (metric.better == "higher" and no_room(judged, limit))):
        return False
    fails = value < limit if metric.better == "higher" else value > limit
    return fails or not flags


def _holm(drafts: Sequence[_Draft]) -> list[Gate]:
    """Corrects the fails for the number of gates; one that does not survive becomes inconclusive."""
    from ...attacks.statistics.rates import holm

    p_values = [draft.p_value for draft in drafts if draft.p_value is not None]
    corrected = iter(holm(p_values))
    gates = []
    for draft in drafts:
        gate, p_value = draft.gate, None if draft.p_value is None else next(corrected)
        if gate.verdict == "fail" and p_value is not None:
            update: dict[str, Any] = {"p_value": p_value}
            if p_value > LEVEL:
                doubt = f"Alone this would fail; among the {len(p_values)} gates of this report chance could do it"
                update["verdict"] = "inconclusive"
                update["needs_records"] = draft.more
                update["sentence"] = f"{gate.sentence} {doubt} (Holm-corrected p {p_value:.2g})."
            gate = gate.model_copy(update=update)
        gates.append(gate)
    return gates


def _judged_finding(finding: Finding, gates: Sequence[Gate], metrics: Mapping[str, Metric]) -> Finding:
    mine = [gate for gate in gates if gate.finding == finding.id]
    if mine:
        worst = deciding_gate(mine, metrics)
        reason = worst.sentence if worst.verdict == "inconclusive" else None
        if finding.estimate is None:
            reason = finding.reason
        return finding.model_copy(update={"gated": True, "verdict": worst.verdict, "reason": reason})
    reason = finding.reason
    if finding.gateable and finding.estimate is not None:
        reason = f"not gated: the policy sets no limit on {metrics[finding.metric].subject}"
    verdict: RowVerdict = "not-measured" if finding.estimate is None else "not-gated"
    return finding.model_copy(update={"gated": False, "verdict": verdict, "reason": reason})


def _judged_candidate(candidate: Candidate, gates: Sequence[Gate], metrics: Mapping[str, Metric]) -> Candidate:
    mine = [gate for gate in gates if gate.candidate == candidate.name]
    if not mine:
        return candidate.model_copy(update={"verdict": "not-gated", "deciding": None, "worst_risk": None})
    worst = deciding_gate(mine, metrics)
    verdict = "inconclusive" if worst.verdict == "not-measured" else worst.verdict
    risks = [gate for gate in mine if gate.finding is not None and gate.value is not None]
    nearest = min(risks, key=lambda gate: margin(gate, metrics)).finding if risks else None
    return candidate.model_copy(update={"verdict": verdict, "deciding": worst.sentence, "worst_risk": nearest})
