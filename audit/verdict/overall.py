"""The verdict on the whole release: which candidates may ship and which may not, and what that rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...attacks.risk import Metric
from ...targets.serving.statement import Verdict
from ..schema import wording
from ..schema.policy_rows import Gate, margin
from ..schema.rows import Candidate

DETAILS = 2  # candidates whose own sentences are given; the report has the others'
NAMES = 12  # of candidates in one sentence


def overall(
    candidates: Sequence[Candidate],
    gates: Sequence[Gate],
    release: Sequence[str],
    metrics: Mapping[str, Metric],
    nothing: str | None = None,
) -> tuple[Verdict, list[str]]:
    """The verdict and what decides it: the first sentence says of every candidate up for release where it stands.

    Args:
        nothing: why nothing can be judged at all, and what would mend it; None: something can.
    """
    if nothing is not None or not release:
        return "inconclusive", [nothing or "No candidate is up for release."]
    rows = {candidate.name: candidate for candidate in candidates}
    present = [rows[name] for name in release if name in rows]
    passed = [row for row in present if row.verdict == "pass"]
    failed = [row for row in present if row.verdict == "fail"]
    open_ = [row for row in present if row.verdict not in ("pass", "fail")]
    missing = [name for name in release if name not in rows]
    terms = _terms(passed, gates, metrics)
    if len(passed) == len(release):
        mine = [gate for gate in gates if gate.candidate in release]
        tightest = min(mine, key=lambda gate: (gate.value is None, margin(gate, metrics)))
        link = ":" if terms.startswith("against") else ","
        nearest = "" if tightest.value is None else "Nearest to its limit: "
        return "pass", [f"{_names(release)} may ship{terms and f'{link} {terms}'}. {nearest}{tightest.sentence}"]
    deciding = failed or open_
    told = [
        f"{_names(names)} {words}"
        for names, words in (
            ([row.name for row in passed], "may ship"),
            (missing, "could not be made"),
            ([row.name for row in open_ if failed], "is undecided" if len(open_) == 1 else "are undecided"),
            ([row.name for row in failed], "may not" if passed else "may not ship"),
            ([row.name for row in open_ if not failed], "is undecided" if len(open_) == 1 else "are undecided"),
        )
        if names
    ]
    sentences = [row.deciding or f"{row.name}: no limit applies to it." for row in deciding[:DETAILS]]
    if len(deciding) == 1:
        sentences = [f"{'; '.join(told)}: {sentences[0].removeprefix(f'{deciding[0].name}: ')}"]
    else:
        sentences = [f"{'; '.join(told)}.", *sentences]
    if terms and passed:
        sentences.append(f"What may ship: {terms}.")
    return "fail" if failed else "inconclusive", sentences


def _names(names: Sequence[str]) -> str:
    shown = [wording.label(name) for name in names[:NAMES]]
    return wording.enumerate_words([*shown, f"{len(names) - NAMES} more"] if len(names) > NAMES else shown)


def _terms(passed: Sequence[Candidate], gates: Sequence[Gate], metrics: Mapping[str, Metric]) -> str:
    """What a pass says, relative to what: `against the dense model at most 2.0 points less accuracy`."""
    names = {row.name for row in passed}
    parents = {row.parent for row in passed}
    (parent,) = parents if len(parents) == 1 else {None}
    compared = "the model it came from" if parent is None else f"the {wording.label(parent)} model"
    limits = {(gate.rule, gate.compares): gate.limit for gate in gates if gate.candidate in names}
    losses, values = [], []
    for (rule, compares), limit in limits.items():
        if limit is None:  # the lineage, which has none
            continue
        metric = metrics[rule]
        if compares == "change":
            allowed = wording.signed(abs(limit), metric).removeprefix("+") + wording.change_unit(metric)
            heading = metric.title.partition(" (")[0]
            losses.append(
                f"{allowed} {'less' if metric.better == 'higher' else 'more'} {heading[:1].lower()}{heading[1:]}"
            )
        else:
            side = "at least" if metric.better == "higher" else "at most"
            values.append(f"{metric.subject.rstrip(',')} {side} {wording.figure(limit, metric)}")
    told = [f"against {compared} at most {wording.enumerate_words(losses)}"] if losses else []
    return wording.enumerate_words([*told, *([f"with {wording.enumerate_words(values)}"] if values else [])])


def deciding_gate(gates: Sequence[Gate], metrics: Mapping[str, Metric]) -> Gate:
    """The gate that decides: fail before inconclusive before not measured before pass, then the least margin."""
    order = ["fail", "inconclusive", "not-measured", "pass"]
    return min(gates, key=lambda gate: (order.index(gate.verdict), margin(gate, metrics)))
