"""What stands beside a verdict: what it leaves out, and what a pass by its limits does not mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...attacks.risk import ACCURACY, BALANCED_ACCURACY, QUALITIES, Metric
from ..schema import wording
from ..schema.rows import Candidate, Estimate, Finding
from .gate_sentences import guess, setting
from .policy import ADVICE, BUILT_IN, EXACT, Policy

DETAILS = 3  # models whose own sentences are given
USUAL = BUILT_IN["release"]
FLOAT_BITS = 16  # and more: a model that computes so is not compressed
ROBUST = "robust_accuracy"
UNTOUCHED = 0.97  # of its accuracy a model keeps under an attack that hardly touches it


def beside(
    candidates: Sequence[Candidate],
    findings: Sequence[Finding],
    policy: Policy,
    usual: Sequence[Candidate],
    release: Sequence[str],
    metrics: Mapping[str, Metric],
) -> list[str]:
    """Sentences: failing models that are not up for release; files compared with themselves; weak figures that pass;
    classes that are lost; accuracy where one class has nearly all records; a policy milder than `release`.

    Args:
        candidates: judged by the policy; usual: the same judged by `release`.
    """
    passing = [row for row in candidates if row.name in release and row.verdict == "pass"]
    told = _aside([row for row in candidates if row.verdict == "fail" and row.name not in release])
    told += [*_same(passing, candidates), *_weak(passing, findings, metrics), *_mild_attack(passing, findings, metrics)]
    told += [*_lost(passing, candidates), *_lopsided(passing, policy)]
    return [*told, *_milder(passing, findings, policy, usual, metrics)]


def _aside(failed: Sequence[Candidate]) -> list[str]:
    told = [
        f"Not up for release{' (a control)' if row.role == 'control' else ''}, and fails: {row.deciding}"
        for row in failed[:DETAILS]
    ]
    more = [wording.label(row.name) for row in failed[DETAILS:]]
    return told + ([f"Not up for release, and failing too: {wording.enumerate_words(more)}."] if more else [])


def _same(passing: Sequence[Candidate], candidates: Sequence[Candidate]) -> list[str]:
    """Files that are the very model they are compared with, or whose parent is compressed already."""
    rows, told = {row.name: row for row in candidates}, []
    for row in passing:
        parent = None if row.parent is None else rows.get(row.parent)
        if parent is None:
            continue
        if parent.digest == row.digest:
            told.append(
                f"{wording.label(row.name)} is byte for byte the {wording.label(parent.name)} model it is compared "
                "with: that nothing was lost says nothing of a compression."
            )
        elif row.file is not None and (width := _width(parent)) < FLOAT_BITS:
            told.append(
                f"The {wording.label(parent.name)} model that {wording.label(row.name)} is compared with computes with "
                f"{width} bits itself: what was lost before that is not seen."
            )
    return list(dict.fromkeys(told))[:DETAILS]


def _width(row: Candidate) -> int:
    """Bits of the weights in most of its products; 32 where they are not counted."""
    counted = row.footprint.macs_by_width
    return max(counted, key=lambda one: one.macs).weight_bits if counted else 32


def _lost(passing: Sequence[Candidate], candidates: Sequence[Candidate]) -> list[str]:
    """Classes of which a passing model surely gets less than half right of what its parent does."""
    parents, told = {row.name: row for row in candidates}, []
    for row in passing:
        parent = None if row.parent is None else parents.get(row.parent)
        if parent is None or row.classes is None or parent.classes is None:
            continue
        theirs = {one.name: one for one in parent.classes.recalls}
        lost = [one for one in row.classes.recalls if one.name in theirs and one.high < theirs[one.name].low / 2]
        if lost:
            said = wording.enumerate_words([
                f"{wording.label(one.name)} ({_recall(one)} right instead of {_recall(theirs[one.name])})"
                for one in lost[:DETAILS]
            ])  # fmt: skip
            more = f" and {len(lost) - DETAILS} more" if len(lost) > DETAILS else ""
            told.append(
                f"{wording.label(row.name)} passes and has lost {'a class' if len(lost) == 1 else 'classes'} that its "
                f"accuracy hides: {said}{more}. A policy can limit {BALANCED_ACCURACY.name} beside it."
            )
    return told[:DETAILS]


def _recall(one: Estimate) -> str:
    return wording.figure(one.estimate, ACCURACY)


def _mild_attack(passing: Sequence[Candidate], findings: Sequence[Finding], metrics: Mapping[str, Metric]) -> list[str]:
    """Where the attack that is gated leaves nearly all of the parent's accuracy: it can hardly tell models apart."""
    by_name = {row.name: row for row in passing}
    for finding in findings:
        row = by_name.get(finding.candidate)
        if row is None or finding.metric != ROBUST or not finding.gateable or not finding.changes:
            continue
        change, (_, quality) = finding.changes[0], row.own_figure(ACCURACY.name)
        if quality is None or change.baseline_estimate < UNTOUCHED * quality.baseline_estimate:
            continue
        metric = metrics[ROBUST]
        return [
            f"The attack that is judged{setting(finding)} leaves {wording.label(change.baseline)} nearly all of its "
            f"accuracy ({wording.figure(change.baseline_estimate, metric)} of "
            f"{wording.figure(quality.baseline_estimate, ACCURACY)}): against a stronger one the models may differ."
        ]
    return []


def _weak(passing: Sequence[Candidate], findings: Sequence[Finding], metrics: Mapping[str, Metric]) -> list[str]:
    """Of each figure beyond what is advised, the worst of the parents' and of the candidates that pass."""
    told, by_id = [], {finding.id: finding for finding in findings}
    for name, advised in ADVICE.items():
        if name not in metrics:
            continue
        metric = metrics[name]
        side = 1 if metric.better == "lower" else -1
        worst: dict[str, tuple[Estimate, str]] = {}
        for row in passing:
            for finding in findings:
                if finding.candidate != row.name or finding.metric != name or not finding.gateable:
                    continue
                of_parent = by_id.get(f"{row.parent}{finding.id.removeprefix(row.name)}")
                for one in filter(None, (finding, of_parent)):
                    own, known = one.estimate, worst.get(one.candidate)
                    if own is None or side * (own.estimate - advised) <= EXACT:
                        continue
                    if known is None or side * (own.estimate - known[0].estimate) > 0:
                        worst[one.candidate] = own, setting(one)
        if not worst:
            continue
        parents = {row.parent for row in passing}
        shown = sorted(worst, key=lambda model: (model not in parents, -side * worst[model][0].estimate))[:DETAILS]
        said = wording.enumerate_words([
            f"{wording.label(model)} {wording.estimate(worst[model][0], metric)}{worst[model][1]}" for model in shown
        ])  # fmt: skip
        what = "leaks" if metric.better == "lower" else "is fragile"
        whose = f"is judged relative to a parent that {what} itself" if set(shown) & parents else what
        told.append(
            f"What passes {whose}: {metric.subject} of {said}; advised is at "
            f"{'most' if metric.better == 'lower' else 'least'} {wording.figure(advised, metric)}."
        )
    return told


def _lopsided(passing: Sequence[Candidate], policy: Policy) -> list[str]:
    """Where the loss of accuracy that is allowed leaves no more than always answering the commonest class gives."""
    limit = policy.changes.get(ACCURACY.name)
    if limit is None or BALANCED_ACCURACY.name in {*policy.changes, *policy.absolutes}:
        return []
    changes = [(row, row.own_figure(ACCURACY.name)[1]) for row in passing]
    kept = [
        row
        for row, change in changes
        if change is not None and change.baseline_estimate + limit <= guess(ACCURACY, row) + EXACT
    ]
    if not kept:
        return []
    return [
        f"A model that always answers the commonest class has {wording.figure(guess(ACCURACY, kept[0]), ACCURACY)} "
        "accuracy, which the policy allows here: accuracy says little of these records. A policy can limit "
        f"{BALANCED_ACCURACY.name} beside it."
    ]


def _milder(
    passing: Sequence[Candidate],
    findings: Sequence[Finding],
    policy: Policy,
    usual: Sequence[Candidate],
    metrics: Mapping[str, Metric],
) -> list[str]:
    """What passes by a policy of the user's own and would not by `release`; what that policy does not limit."""
    if policy.limits == USUAL.limits or any(limit.left_out for limit in policy.limits):
        return []
    names = {row.name for row in passing}
    failed = [row for row in usual if row.name in names and row.verdict == "fail"]
    told = [f"By the built-in policy {USUAL.name} it would fail: {row.deciding}" for row in failed[:DETAILS]]
    more = [wording.label(row.name) for row in failed[DETAILS:]]
    told += [f"By it would fail too: {wording.enumerate_words(more)}."] if more else []
    limited = {*policy.changes, *policy.absolutes}
    qualities = {metric.name for metric in QUALITIES}
    measured = {one.metric for one in findings if one.candidate in names and one.gateable and one.estimate is not None}
    measured |= {row.quality_metric.name for row in passing}
    open_ = [name for name in USUAL.changes if name in measured - limited and name in metrics]
    if limited & qualities:
        open_ = [name for name in open_ if name not in qualities]
    unmeasured = [name for name in USUAL.changes if name in metrics and name not in measured | limited | qualities]
    for unlimited, words in ((open_, "measured all the same"), (unmeasured, "which nothing here measures")):
        if unlimited:
            subjects = wording.enumerate_words([_heading(metrics[name]) for name in unlimited])
            told.append(f"The policy {wording.label(policy.name)} does not limit {subjects}, {words}.")
    return told


def _heading(metric: Metric) -> str:
    heading = metric.title.partition(" (")[0]
    return heading[:1].lower() + heading[1:]
