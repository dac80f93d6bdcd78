"""What the report works out from an audit before a template prints it: its rows by name, picks, fixes, gaps.

Nothing here measures anything; every figure comes from the audit or is a difference of two figures in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...attacks.risk import ACCURACY, QUALITIES, Metric
from ..schema.policy_rows import Gate, Limit
from ..schema.rows import Audit, Candidate, Finding
from ..schema.wording import (
    change_interval,
    change_unit,
    enumerate_words,
    estimate,
    figure,
    interval,
    label,
    milliseconds,
    plural,
    sentence,
    setting,
    signed,
)


@dataclass(frozen=True)
class Index:
    """An audit with its rows by name. `order` numbers the findings: the anchors of the page."""

    audit: Audit
    candidates: dict[str, Candidate]
    findings: dict[str, Finding]
    order: dict[str, int]
    plain: Candidate | None

    def metric(self, name: str) -> Metric:
        return self.audit.metrics[name]

    def of(self, candidate: str) -> list[Finding]:
        return [f for f in self.audit.findings if f.candidate == candidate]

    def gate(self, finding: Finding) -> Gate | None:
        return next((g for g in self.audit.policy if g.finding == finding.id), None)

    def accuracy_gate(self, candidate: str) -> Gate | None:
        return next(
            (
                g
                for g in self.audit.policy
                if g.candidate == candidate and g.rule in {metric.name for metric in QUALITIES}
            ),
            None,
        )


def index(audit: Audit) -> Index:
    return Index(
        audit,
        {c.name: c for c in audit.candidates},
        {f.id: f for f in audit.findings},
        {f.id: place for place, f in enumerate(audit.findings)},
        next((c for c in audit.candidates if c.role == "dense" and c.defense is None), None),
    )


def suffix(finding: Finding) -> str:
    """The part of a finding's id after its candidate: `risk`, `risk/auc`."""
    return finding.id.removeprefix(finding.candidate + "/")


@dataclass(frozen=True)
class Column:
    """One risk figure across candidates: the findings of one suffix."""

    suffix: str
    risk: str
    metric: Metric
    title: str
    setting: str
    findings: dict[str, Finding]

    @property
    def gated(self) -> bool:
        return any(f.gated for f in self.findings.values())


def columns(audit: Audit) -> list[Column]:
    """In the order of the risks, a risk's main figure first."""
    grouped: dict[str, list[Finding]] = {}
    for finding in audit.findings:
        grouped.setdefault(suffix(finding), []).append(finding)
    made: list[Column] = []
    for name, findings in grouped.items():
        settings = {setting(f.setting) for f in findings}
        common = settings.pop() if len(settings) == 1 else ""
        first = findings[0]
        figure = audit.metrics[first.metric]
        title, attack, detail = figure.title, *name.partition("/")[::2]
        if detail and detail != first.metric and any(c.metric.name == first.metric for c in made):
            title += f", {label(detail.replace('-', ' '))}"
        if any((c.title, c.setting) == (title, common) for c in made):  # a second attack of one kind
            title += f", {label(attack)}"
        made.append(Column(name, first.risk, figure, title, common, {f.candidate: f for f in findings}))
    risks = list(audit.risks)
    return sorted(made, key=lambda c: (risks.index(c.risk), c.suffix.count("/")))


# --- which one to ship -----------------------------------------------------------------------------------------------


def latency(audit: Audit, name: str, batch: int) -> float | None:
    """Median milliseconds per call at that batch size; None when it was not timed."""
    return next((row.p50 for row in audit.environment.latency.get(name, []) if row.batch == batch), None)


def batches(audit: Audit) -> list[int]:
    return sorted({row.batch for rows in audit.environment.latency.values() for row in rows})


def picks(ix: Index) -> list[tuple[str, Candidate, str]]:
    """(what it is, candidate, its figures) for the smallest and the fastest that pass."""
    passing = [c for c in ix.audit.candidates if c.name in ix.audit.release and c.verdict == "pass"]
    if not passing:
        return []
    smallest = min(passing, key=lambda c: (c.footprint.payload_bytes, -c.merit))
    found = [("Smallest that passes", smallest, f"payload {smallest.footprint.ratio:.1f}\u00d7 smaller")]
    timed = [(t, c) for c in passing if (t := latency(ix.audit, c.name, 1)) is not None]
    if timed:
        fastest = min(timed, key=lambda pair: (pair[0], pair[1].footprint.payload_bytes))
        found.append(("Fastest that passes", fastest[1], f"{milliseconds(fastest[0])} for one record"))
    accurate = max(passing, key=lambda c: (c.merit, -c.footprint.payload_bytes))
    return [*found, ("Most accurate that passes", accurate, estimate(accurate.quality, accurate.quality_metric))]


_OF_THE_DEFENSE = {"rounding", "rounding_seed", "calibration_inputs", "calibration_records"}


def _without_defense_fields(recipe: Any) -> Any:
    """A recipe without what a hardened form of it differs in."""
    if isinstance(recipe, dict):
        if recipe.get("kind") in ("limit-answers", "transform-inputs", "noise-inputs"):
            return _without_defense_fields(recipe["recipe"])
        return {key: _without_defense_fields(value) for key, value in recipe.items() if key not in _OF_THE_DEFENSE}
    return [_without_defense_fields(item) for item in recipe] if isinstance(recipe, list | tuple) else recipe


def made_robust(recipe: Any) -> bool:
    """Whether a recipe learns under attack."""
    if isinstance(recipe, dict):
        own = recipe.get("adversarial") is not None or str(recipe.get("importance", "")).startswith("adversarial")
        return own or any(map(made_robust, recipe.values()))
    return isinstance(recipe, list | tuple) and any(map(made_robust, recipe))


def _without_lessons(recipe: Any) -> Any:
    """A recipe without what tells one that learns under attack from one that does not, the longer lessons included."""
    if isinstance(recipe, dict):
        lesson = {"adversarial", "epochs"} if "adversarial" in recipe else {"importance"}
        return {key: _without_lessons(value) for key, value in recipe.items() if key not in lesson}
    return [_without_lessons(item) for item in recipe] if isinstance(recipe, list | tuple) else recipe


def same_recipe(hardened: Candidate, plain: Candidate) -> bool:
    """Whether it is the same recipe but for the defense."""
    own, other = (_without_defense_fields(one.recipe) for one in (hardened, plain))
    if own == other:
        return True
    return made_robust(own) and not made_robust(other) and bool(_without_lessons(own) == _without_lessons(other))


def counterpart(ix: Index, hardened: Candidate) -> Candidate | None:
    """The same model without the defense: the same recipe on the plain dense model; None when it was not audited."""
    if hardened.role == "dense":
        return ix.plain
    plain = [c for c in ix.audit.candidates if c.role != "dense" and c.defense is None and not made_robust(c.recipe)]
    same = [c for c in plain if c.recipe is not None and c is not hardened and same_recipe(hardened, c)]
    exact = [c for c in same if _without_defense_fields(c.recipe) == _without_defense_fields(hardened.recipe)]
    return next(iter(exact or same), None)


def without_name(text: str | None, name: str) -> str:
    """A deciding sentence without the candidate's name in front, for use beside that name."""
    return sentence((text or "").removeprefix(f"{name}: "))


# --- trust and evidence ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """One thing that was not measured, and why."""

    candidate: str
    what: str
    reason: str


def gaps(audit: Audit) -> list[Gap]:
    """Rows left out, findings without a figure, and attacks that did not run, without saying anything twice."""
    found = [Gap(n.candidate or "all", n.what, n.reason) for n in audit.not_measured]
    found += [Gap(f.candidate, f.id, f.reason or "no reason given") for f in audit.findings if f.estimate is None]
    skipped: dict[tuple[str, str], list[str]] = {}
    for finding in audit.findings:
        for part in finding.parts:
            if part.skipped is not None:
                skipped.setdefault((f"{part.name} ({suffix(finding)})", part.skipped), []).append(finding.candidate)
    for (what, why), names in skipped.items():
        every = len(names) == len(audit.candidates)
        found.append(Gap("all" if every else ", ".join(label(n, 40) for n in names), what, why))
    return list(dict.fromkeys(found))


def flags_raised(audit: Audit) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Per flag: the findings that carry it (with no part named) or whose parts do (with the parts' names)."""
    raised: dict[str, dict[str, list[str]]] = {}
    for finding in audit.findings:
        for flag in finding.flags:
            raised.setdefault(flag, {}).setdefault(finding.id, [])
        for part in finding.parts:
            for flag in part.flags:
                raised.setdefault(flag, {}).setdefault(finding.id, []).append(part.name)
    return [(flag, list(where.items())) for flag, where in sorted(raised.items())]


def taxonomy(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Framework -> ids over all findings, in order of appearance."""
    merged: dict[str, list[str]] = {}
    for finding in findings:
        for framework, ids in finding.taxonomy.items():
            known = merged.setdefault(framework, [])
            known += [i for i in ids if i not in known]
    return merged


def scope_words(ix: Index) -> str:
    """How many candidates the verdict covers and how they fared, in a sentence."""
    released = [ix.candidates[name] for name in ix.audit.release if name in ix.candidates]
    words = {"pass": "pass", "fail": "fail", "inconclusive": "inconclusive", "not-gated": "not judged"}
    fared = [(words[v], sum(c.verdict == v for c in released)) for v in words]
    counts = [f"{count} {verdict}" for verdict, count in fared if count]
    others = len(ix.audit.candidates) - len(released)
    return (
        f"The verdict covers {plural(len(released), 'candidate')} up for release"
        + (f": {enumerate_words(counts)}." if counts else ".")
        + (f" {plural(others, 'more model')} {'is' if others == 1 else 'are'} shown for comparison." if others else "")
    )


def left_out(ix: Index) -> list[Limit]:
    """The limits that these inputs could not decide; of accuracy and error, the one that the models have."""
    alternatives = {metric.name for metric in QUALITIES} - {quality(ix.audit).name}
    return [one for one in ix.audit.policy_limits if one.left_out is not None and one.metric not in alternatives]


def worst_words(ix: Index, candidate: Candidate) -> tuple[str, str]:
    """The finding nearest to or furthest beyond its limit: its figure, and its interval with the change."""
    finding = ix.findings.get(candidate.worst_risk or "")
    if finding is None or finding.estimate is None:
        return "\u2013", ""
    value, metric = finding.estimate, ix.metric(finding.metric)
    ends = interval(value.low, value.high, metric) if value.unsearched is None else "found by a search"
    if finding.changes:
        moved = finding.changes[0]
        ends += f"; {signed(moved.difference, metric)}{change_unit(metric)} "
        ends += change_interval(moved.low, moved.high, metric)
    return f"{metric.title.split(' (')[0]} {figure(value.estimate, metric)}", ends


def quality(audit: Audit) -> Metric:
    """What the models of this audit are good at: accuracy, or the mean squared error."""
    return audit.candidates[0].quality_metric if audit.candidates else ACCURACY


def common_n(audit: Audit) -> int | None:
    """The number of records behind every accuracy or error, when it is the same for all."""
    counts = {c.quality.n for c in audit.candidates}
    return counts.pop() if len(counts) == 1 else None
