"""Thresholds on findings, and the verdict they give (DESIGN's rules 7 and 11 to 13).

A gate is one limit applied to one candidate. It passes when the whole 95 % interval is within the limit, fails when the
whole interval is beyond it, and is inconclusive otherwise; a trust flag turns a pass into inconclusive and never
softens a fail, but for a flag on the parent's figure, which leaves a change open both ways. A parent that has no room
to fall leaves it open too. What is inconclusive says what would settle it. Fails are corrected for the number of gates
in the report (Holm 1979); passes need no correction, because a candidate passes only if all of its gates do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

from pydantic import Field, field_validator

from ..targets.errors import InputError
from . import words
from .findings import Audit, Candidate, Change, Estimate, Finding, Gate, RowVerdict, Verdict
from .plan import validated
from .settings import Settings, did_you_mean, fault
from .yaml_plan import SIZE_CAP, Source, load_yaml, read_text

SUBJECTS = {  # metric -> how a sentence calls it
    "accuracy": "accuracy",
    "mean_squared_error": "the mean squared error, as a share of the variance,",
    "robust_accuracy": "robust accuracy",
    "tpr_at_1_percent_fpr": "the share of members exposed at 1 % false accusations",
    "auc": "the membership attack's AUC",
    "fidelity": "the stolen copy's fidelity",
}
QUALITIES = ("accuracy", "mean_squared_error")  # of a candidate itself; the others are of findings
LEVEL = 0.025  # one-sided: the whole of a two-sided 95 % interval lies beyond the limit
Z = NormalDist().inv_cdf(1 - LEVEL)
EXACT = 1e-9  # slack for rounding in a limit or an interval's end


class Policy(Settings):
    """Limits by metric: accuracy (or mean_squared_error), robust_accuracy, tpr_at_1_percent_fpr, auc, fidelity.

    All are fractions: 2 points are 0.02. A metric without a limit is reported and not judged.
    """

    name: str = Field(default="custom", min_length=1, max_length=200)
    changes: dict[str, float] = Field(
        default={},
        description="the worst change allowed against the candidate's own parent: accuracy -0.02 is at most 2 points "
        "lower, auc 0.05 is at most .05 higher",
    )
    absolutes: dict[str, float] = Field(
        default={}, description="the worst value allowed: robust_accuracy 0.4 is at least 40 %, auc 0.6 is at most .6"
    )

    @field_validator("changes", "absolutes")
    @classmethod
    def _known_metrics(cls, value: dict[str, float]) -> dict[str, float]:
        for metric, limit in value.items():
            if metric not in SUBJECTS:
                raise fault(did_you_mean("is not a metric", metric, list(SUBJECTS)), metric)
            if abs(limit) > 1:
                raise fault(f"{limit:g} is no fraction; 2 points are written 0.02", metric)
        return value

    @field_validator("changes")
    @classmethod
    def _signs(cls, value: dict[str, float]) -> dict[str, float]:
        for metric, limit in value.items():
            if (words.metric(metric).better == "higher" and limit > 0) or (
                words.metric(metric).better == "lower" and limit < 0
            ):
                raise fault(
                    f"{limit:g} asks for more than the parent has; to allow that much worse, write {-limit:g}", metric
                )
        return value

    @field_validator("absolutes")
    @classmethod
    def _not_negative(cls, value: dict[str, float]) -> dict[str, float]:
        for metric, limit in value.items():
            if limit < 0:
                raise fault(f"{limit:g} is no value this metric can take; changes stand under `changes`", metric)
        return value


BUILT_IN = {
    "release": Policy(
        name="release",
        changes={
            "accuracy": -0.02,
            "mean_squared_error": 0.02,
            "robust_accuracy": -0.05,
            "tpr_at_1_percent_fpr": 0.05,
            "auc": 0.05,
        },
    ),
    "robustness": Policy(
        name="robustness", changes={"accuracy": -0.02, "mean_squared_error": 0.02, "robust_accuracy": -0.05}
    ),
}


def load_policy(raw: str | Mapping[str, Any], folder: Path, source: Source | None = None) -> Policy:
    """The policy a plan or command line names: a built-in one, a YAML file seen from `folder`, or the limits.

    Raises:
        InputError: no such policy, or one that limits nothing; the message names the line where there is one.
        UnsafeInput: a tag in the file asks for a Python object.
    """
    if isinstance(raw, str) and raw in BUILT_IN:
        return BUILT_IN[raw]
    if not isinstance(raw, str):
        policy = validated(Policy, raw, source or Source("the policy"), () if source is None else ("policy",))
    elif Path(raw).suffix in (".yaml", ".yml", ".json") or "/" in raw:
        path = folder / raw
        values, lines = load_yaml(read_text(path, "policy", SIZE_CAP), path.name)
        named = {"name": path.stem[:200], **values} if isinstance(values, Mapping) else values
        policy = validated(Policy, named, lines)
    else:
        message = did_you_mean(f"there is no policy {raw!r}", raw, list(BUILT_IN))
        raise InputError(
            f"{message[0].upper()}{message[1:]} A policy of your own is named by its file, such as my.yaml."
        )
    if not policy.changes and not policy.absolutes:
        raise InputError(
            f"Policy {policy.name!r} limits nothing, so everything would pass. Give `changes`, `absolutes`."
        )
    return policy


def judge(low: float, high: float, limit: float, better: str, flags: Sequence[str] = ()) -> Verdict:
    """The verdict on the interval [low, high] of a value, or of a change, against its limit."""
    if better == "lower":
        low, high, limit = -high, -low, -limit
    if high < limit - EXACT:
        return "fail"
    return "pass" if low >= limit - EXACT and not flags else "inconclusive"


def no_room(change: Change, limit: float) -> bool:
    """Whether the parent could lose all it has, or all that a guesser has not, and keep the limit (rule 12)."""
    if change.baseline_high is None or change.floor is None:
        return False
    return change.baseline_high <= change.floor + abs(limit) + EXACT


def records_needed(value: float, low: float, high: float, limit: float, n: int) -> int | None:
    """About how many records would bring the interval to one side of the limit, if the value held; None: no number.

    The width of an interval goes with the square root of the records; the value itself lies on the limit where none
    would do.
    """
    gap = abs(value - limit)
    width = high - value if value < limit else value - low
    if gap <= EXACT or width <= EXACT:
        return None
    return max(n + 1, math.ceil(n * (width / gap) ** 2))


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


def apply_policy(
    candidates: Sequence[Candidate], findings: Sequence[Finding], policy: Policy, release: Sequence[str]
) -> Judgement:
    """Judges every candidate; the overall verdict covers those named in `release`.

    Dense models are what candidates are compared with, and are not judged. A finding is judged when the policy limits
    its metric and the finding is `gateable`. A limited metric that was not measured cannot pass.
    """
    drafts: list[_Draft] = []
    for candidate in candidates:
        if candidate.role != "dense":
            drafts += [*_lineage(candidate), *_drafts(candidate, findings, policy)]
    gates = _holm(drafts)
    judged = [_judged_finding(finding, gates) for finding in findings]
    rows = [_judged_candidate(candidate, gates) for candidate in candidates]
    verdict, deciding = _overall(rows, gates, release)
    return Judgement(gates, rows, judged, verdict, deciding)


def check_verdicts(audit: Audit, folder: Path) -> None:
    """That the verdicts in an audit.json follow from its own figures under its own built-in or inline policy.

    Raises:
        InputError: they do not: somebody changed the file, or `crushproof gate` judged it by another policy.
    """
    named = audit.plan.get("policy", "release")
    if isinstance(named, str) and named not in BUILT_IN:
        return  # a policy file, which may have moved since
    judged = rejudge(audit, load_policy(named, folder))
    ours = [judged.verdict, *(row.verdict for row in judged.candidates), *(row.verdict for row in judged.findings)]
    theirs = [audit.verdict, *(row.verdict for row in audit.candidates), *(row.verdict for row in audit.findings)]
    if ours != theirs:
        raise InputError(
            f"{folder / 'audit.json'} contradicts itself: its verdicts do not follow from its figures, so it was "
            "changed after the audit. Run the audit again; what is computed is kept."
        )


def rejudge(audit: Audit, policy: Policy) -> Audit:
    """The same measurements under another policy; nothing is computed again."""
    judgement = apply_policy(audit.candidates, audit.findings, policy, audit.release)
    return audit.model_copy(
        update={
            "verdict": judgement.verdict,
            "deciding": judgement.deciding,
            "candidates": judgement.candidates,
            "findings": judgement.findings,
            "policy": judgement.gates,
            "policy_name": policy.name,
        }
    )


@dataclass(frozen=True)
class _Draft:
    """A gate before the correction for their number; `p_value` is None when nothing was measured."""

    gate: Gate
    p_value: float | None


def _drafts(candidate: Candidate, findings: Sequence[Finding], policy: Policy) -> list[_Draft]:
    drafts = []
    limits: list[tuple[Literal["change", "absolute"], dict[str, float]]] = [
        ("change", policy.changes),
        ("absolute", policy.absolutes),
    ]
    for metric in SUBJECTS:
        if metric in QUALITIES and metric != candidate.quality_metric:
            continue
        if candidate.accuracy is None and metric not in QUALITIES:
            continue  # no attack here applies to models of values; the report says so in a row of each
        mine = [one for one in findings if one.candidate == candidate.name and one.metric == metric and one.gateable]
        judged = mine if metric not in QUALITIES and mine else [None]
        for compares, by_metric in limits:
            if metric in by_metric:
                drafts += [_draft(candidate, one, metric, compares, by_metric[metric]) for one in judged]
    return drafts


def _lineage(candidate: Candidate) -> list[_Draft]:
    """Under any policy: a file that is declared to be quantised must be a rounding of the dense model.

    One that is not fails where its recipe only rounds, and leaves the verdict open where it may have been trained. One
    that cannot be compared leaves it open too where its recipe keeps every weight's shape: else a tampered file would
    only have to be made unreadable. Where nothing is declared, or a recipe that changes shapes, nothing is promised
    that could be held against it.
    """
    found, recipe = candidate.lineage, candidate.recipe or {}
    if found is None and (candidate.file is None or candidate.parent is None):
        return []  # made here, or nothing to compare it with
    promised = _promise(recipe)
    if found is None or found.verdict == "not comparable":
        if promised is None:
            return []
        reason = "The check did not run." if found is None else found.reason or " ".join(found.sentences)
        told = (
            f"it is declared as {_declared(candidate)} and cannot be compared with the dense model. {reason} Declare "
            "how it was really made, or ask its maker for the dense model that it came from."
        )
        return [_Draft(_lineage_gate(candidate, "inconclusive", told), None)]
    verdict: RowVerdict = "pass"
    if found.verdict == "not nearest":
        rounding = recipe.get("quantize", recipe).get("rounding")
        verdict = "pass" if rounding in ("adaptive", "stochastic") else "inconclusive"
    elif found.verdict != "confirmed":
        verdict = "fail" if promised == "rounding" else "inconclusive"
    return [_Draft(_lineage_gate(candidate, verdict, " ".join(found.sentences)), None)]


def _lineage_gate(candidate: Candidate, verdict: RowVerdict, told: str) -> Gate:
    return Gate(
        candidate=candidate.name,
        rule="lineage",
        finding=None,
        value=None,
        low=None,
        high=None,
        limit=None,
        compares="absolute",
        verdict=verdict,
        p_value=None,
        sentence=f"{candidate.name}: {told[:900]}",
    )


def _promise(recipe: Mapping[str, Any]) -> Literal["rounding", "shapes"] | None:
    """What a declared recipe says of the weights: only rounded, of the dense model's shapes at least, or nothing."""
    kind = recipe.get("kind")
    if kind in ("quantize", "mixed-precision"):
        return "rounding" if recipe.get("quantize", recipe).get("fine_tune") is None else "shapes"
    if kind == "chain":
        return "shapes" if all(_promise(step) for step in recipe.get("steps", ())) else None
    keeps = kind in ("share", "dynamic-sparsity")
    keeps |= kind == "prune" and recipe.get("structure", "weights") in ("weights", "n:m")
    return "shapes" if keeps else None


def _declared(candidate: Candidate) -> str:
    return f'"{candidate.recipe_words.partition("declared as ")[2] or (candidate.recipe or {}).get("kind")}"'


def _draft(
    candidate: Candidate, finding: Finding | None, metric: str, compares: Literal["change", "absolute"], limit: float
) -> _Draft:
    """One limit applied to a finding; to the candidate's accuracy, or to a gap in the plan, when there is none."""
    change, why_not = None, None
    if metric in QUALITIES:
        estimate, change = candidate.quality, candidate.quality_change
    elif finding is None:
        estimate, why_not = None, "the plan has no such attack"
    else:
        estimate, why_not = finding.estimate, finding.reason
        change = finding.changes[0] if finding.changes else None
    subject = f"{candidate.name}: {SUBJECTS[metric]}{_setting(finding)}"
    gate = Gate(
        candidate=candidate.name,
        rule=metric,
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
        sentence = (
            f"{subject} is {words.estimate(estimate, metric)}, and no dense model is known to compare it with: name "
            "one, or a policy with absolute limits."
        )
        return _Draft(gate.model_copy(update={"sentence": sentence}), None)
    better = words.metric(metric).better
    flags = sorted({*candidate.flags, *(() if finding is None else finding.flags)})
    value = judged.difference if isinstance(judged, Change) else judged.estimate
    verdict = judge(judged.low, judged.high, limit, better, flags)
    sentence = _sentence(subject, metric, estimate, change, compares, limit) + _doubt(flags)
    if isinstance(judged, Change):
        if judged.flags:
            verdict = "inconclusive"
            sentence += f" The figure of {judged.baseline} may be too optimistic ({', '.join(judged.flags)})."
        if better == "higher" and no_room(judged, limit):
            verdict = "inconclusive"
            sentence += (
                f" {judged.baseline} itself is on the floor there ({words.figure(judged.baseline_estimate, metric)}), "
                f"so that no loss could be seen: {judged.instead or 'measure it where the parent is better'}."
            )
    if verdict == "inconclusive" and judge(judged.low, judged.high, limit, better) == "inconclusive":
        available = estimate.n if finding is None or finding.available is None else finding.available
        sentence += _what_settles(value, judged.low, judged.high, limit, estimate.n, available, metric)
    measured = {"value": value, "low": judged.low, "high": judged.high, "verdict": verdict, "sentence": sentence}
    p_value = beyond(value, judged.low, judged.high, limit, better)
    if isinstance(judged, Change) and limit == 0 and judged.p_value is not None:
        worse = value < 0 if better == "higher" else value > 0
        p_value = judged.p_value / 2 if worse else 1 - judged.p_value / 2  # the paired test is of this very limit
    return _Draft(gate.model_copy(update=measured), p_value)


def _holm(drafts: Sequence[_Draft]) -> list[Gate]:
    """Corrects the fails for the number of gates; one that does not survive becomes inconclusive."""
    from .statistics import holm

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
                update["sentence"] = f"{gate.sentence} {doubt} (Holm-corrected p {p_value:.2g})."
            gate = gate.model_copy(update=update)
        gates.append(gate)
    return gates


def _judged_finding(finding: Finding, gates: Sequence[Gate]) -> Finding:
    mine = [gate for gate in gates if gate.finding == finding.id]
    if mine:
        worst = _worst(mine)
        reason = worst.sentence if worst.verdict == "inconclusive" else None
        if finding.estimate is None:
            reason = finding.reason
        return finding.model_copy(update={"gated": True, "verdict": worst.verdict, "reason": reason})
    reason = finding.reason
    if finding.gateable and finding.estimate is not None:
        reason = f"not gated: the policy sets no limit on {SUBJECTS[finding.metric]}"
    verdict: RowVerdict = "not-measured" if finding.estimate is None else "not-gated"
    return finding.model_copy(update={"gated": False, "verdict": verdict, "reason": reason})


def _judged_candidate(candidate: Candidate, gates: Sequence[Gate]) -> Candidate:
    mine = [gate for gate in gates if gate.candidate == candidate.name]
    if not mine:
        return candidate.model_copy(update={"verdict": "not-gated", "deciding": None, "worst_risk": None})
    worst = _worst(mine)
    verdict = "inconclusive" if worst.verdict == "not-measured" else worst.verdict
    risks = [gate for gate in mine if gate.finding is not None and gate.value is not None]
    nearest = min(risks, key=_margin).finding if risks else None
    return candidate.model_copy(update={"verdict": verdict, "deciding": worst.sentence, "worst_risk": nearest})


def _overall(
    candidates: Sequence[Candidate], gates: Sequence[Gate], release: Sequence[str]
) -> tuple[Verdict, list[str]]:
    rows = {candidate.name: candidate for candidate in candidates}
    missing = [name for name in release if name not in rows]
    present = [rows[name] for name in release if name in rows]
    failed = [row for row in present if row.verdict == "fail"]
    open_ = [row for row in present if row.verdict not in ("pass", "fail")]
    if failed:
        return "fail", _sentences(failed, present, "fail")
    if missing or open_ or not present:
        sentences = [f"{name} could not be made, so nothing about it was measured." for name in missing[:2]]
        if not release:
            sentences = ["No candidate is up for release."]
        return "inconclusive", [*sentences, *_sentences(open_, present, "are inconclusive")][:3]
    mine = [gate for gate in gates if gate.candidate in release]
    tightest = min(mine, key=lambda gate: (gate.value is None, _margin(gate)))
    count = "The candidate up for release passes" if len(present) == 1 else f"All {len(present)} candidates pass"
    nearest = "" if tightest.value is None else "Nearest to its limit: "
    return "pass", [f"{count}. {nearest}{tightest.sentence}"]


def _sentences(rows: Sequence[Candidate], present: Sequence[Candidate], what: str) -> list[str]:
    """The first deciding sentences and, when there are more, how many candidates share their fate."""
    sentences = [row.deciding for row in rows[:2] if row.deciding is not None]
    if len(rows) > 2:
        sentences.append(f"{len(rows)} of {len(present)} candidates {what}: {', '.join(row.name for row in rows)}.")
    return sentences


def _worst(gates: Sequence[Gate]) -> Gate:
    """The gate that decides: fail before inconclusive before not measured before pass, then the least margin."""
    order = ["fail", "inconclusive", "not-measured", "pass"]
    return min(gates, key=lambda gate: (order.index(gate.verdict), _margin(gate)))


def _margin(gate: Gate) -> float:
    """How far the unfavourable end of the interval keeps within the limit; negative beyond it."""
    if gate.low is None or gate.high is None or gate.limit is None:
        return 0.0
    return gate.low - gate.limit if words.metric(gate.rule).better == "higher" else gate.limit - gate.high


def _setting(finding: Finding | None) -> str:
    if finding is None or "epsilon" not in finding.setting:
        return ""
    norm = " (L2)" if finding.setting.get("norm") == "l2" else ""
    return f" at eps {finding.setting['epsilon']:.4g}{norm}"


def _sentence(subject: str, metric: str, estimate: Estimate, change: Change | None, compares: str, limit: float) -> str:
    """`int8: robust accuracy at eps 0.1 is 31.0 % [27.0, 35.0], 12.3 points below its parent's [...]; ...`."""
    text = f"{subject} is {words.estimate(estimate, metric)}"
    higher = words.metric(metric).better == "higher"
    if compares == "absolute":
        return f"{text}; the policy asks for at {'least' if higher else 'most'} {words.figure(limit, metric)}."
    assert change is not None, "a change is judged only where there is one"
    side = "above" if change.difference > 0 else "below"
    relation = f"{_distance(change.difference, metric)} {side}" if change.difference else "the same as"
    text += f", {relation} its parent's {words.change_interval(change.low, change.high, metric)}"
    allowed = _distance(limit, metric) if limit else "nothing"
    return f"{text}; the policy allows at most {allowed} {'less' if higher else 'more'}."


def _distance(difference: float, metric: str) -> str:
    """`5.0 points` or `0.050`: without its sign."""
    return words.signed(abs(difference), metric).removeprefix("+") + words.change_unit(metric)


def _what_settles(value: float, low: float, high: float, limit: float, n: int, available: int, metric: str) -> str:
    """What would bring the interval to one side of the limit, and whether the data at hand can (rule 13)."""
    needed = records_needed(value, low, high, limit, n)
    told = " The interval reaches across the limit"
    if needed is None or needed > 1000 * n:
        return f"{told}, and the figure lies on it: more records would not settle it, another limit would."
    rounded = float(f"{needed:.2g}") if needed > 100 else needed
    told += f"; about {rounded:.0f} records instead of {n} would settle it if the figure holds"
    if metric not in ("robust_accuracy", *QUALITIES):
        return f"{told} (so would more shadow models)."
    if needed <= available:
        return f"{told}, and the data has {available}: raise `records`."
    return f"{told}; the data has {available}."


def _doubt(flags: Sequence[str]) -> str:
    return f" The measurement may be too optimistic: {', '.join(flags)}." if flags else ""
