"""What the report works out from an audit before a template prints it: picks, mends, the matrix, takeaways, comparisons.

Nothing here measures anything; every figure comes from the audit or is a difference of two figures in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .findings import Audit, Candidate, Estimate, Finding, Gate, Part, ThreatModel
from .words import (
    RISKS,
    change,
    change_interval,
    change_unit,
    defense,
    enumerate_words,
    estimate,
    figure,
    in_text,
    interval,
    label,
    metric,
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

    def of(self, candidate: str) -> list[Finding]:
        return [f for f in self.audit.findings if f.candidate == candidate]

    def gate(self, finding: Finding) -> Gate | None:
        return next((g for g in self.audit.policy if g.finding == finding.id), None)

    def accuracy_gate(self, candidate: str) -> Gate | None:
        return next((g for g in self.audit.policy if g.candidate == candidate and g.finding is None), None)


def index(audit: Audit) -> Index:
    return Index(
        audit,
        {c.name: c for c in audit.candidates},
        {f.id: f for f in audit.findings},
        {f.id: place for place, f in enumerate(audit.findings)},
        next((c for c in audit.candidates if c.role == "dense" and c.defense is None), None),
    )


def suffix(finding: Finding) -> str:
    """The part of a finding's id after its candidate: `evasion`, `membership/auc`."""
    return finding.id.removeprefix(finding.candidate + "/")


@dataclass(frozen=True)
class Column:
    """One risk figure across candidates: the findings of one suffix."""

    suffix: str
    risk: str
    metric: str
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
    made = []
    for name, findings in grouped.items():
        settings = {setting(f.setting) for f in findings}
        common = settings.pop() if len(settings) == 1 else ""
        first, title = findings[0], metric(findings[0].metric).name
        detail = name.partition("/")[2].replace("-", " ")
        if detail and detail != first.metric and any(c.metric == first.metric for c in made):
            title += f", {label(detail)}"
        made.append(Column(name, first.risk, first.metric, title, common, {f.candidate: f for f in findings}))
    risks = list(RISKS)
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
    smallest = min(passing, key=lambda c: (c.footprint.payload_bytes, -c.accuracy.estimate))
    found = [("Smallest that passes", smallest, f"payload {smallest.footprint.ratio:.1f}\u00d7 smaller")]
    timed = [(t, c) for c in passing if (t := latency(ix.audit, c.name, 1)) is not None]
    if timed:
        fastest = min(timed, key=lambda pair: (pair[0], pair[1].footprint.payload_bytes))
        found.append(("Fastest that passes", fastest[1], f"{milliseconds(fastest[0])} for one record"))
    accurate = max(passing, key=lambda c: (c.accuracy.estimate, -c.footprint.payload_bytes))
    return [*found, ("Most accurate that passes", accurate, estimate(accurate.accuracy, "accuracy"))]


_MADE_BY_CHANCE = {"seed", "rounding", "draw", "draws"}


def _bones(recipe: Any) -> Any:
    """A recipe without what a hardened form of it differs in."""
    if isinstance(recipe, dict):
        return {key: _bones(value) for key, value in recipe.items() if key not in _MADE_BY_CHANCE}
    return [_bones(item) for item in recipe] if isinstance(recipe, list | tuple) else recipe


def counterpart(ix: Index, hardened: Candidate) -> Candidate | None:
    """The same model without the defense: the same recipe on the plain dense model; None when it was not audited."""
    if hardened.role == "dense":
        return ix.plain
    plain = [c for c in ix.audit.candidates if c.role != "dense" and c.defense is None]
    same = [c for c in plain if c.recipe is not None and _bones(c.recipe) == _bones(hardened.recipe)]
    return same[0] if same else None


def mend(ix: Index, candidate: Candidate) -> str:
    """The cheapest measured defense under which the same recipe passes what this candidate fails, in a sentence.

    Where the same recipe was not audited with a defense that helps, the same technique is looked at.
    """
    failed = [g for g in ix.audit.policy if g.candidate == candidate.name and g.verdict == "fail"]
    risks = [ix.findings[g.finding] for g in failed if g.finding in ix.findings]
    if not risks:
        return "No defense gives accuracy back: compress less, or fine-tune." if failed else ""
    rest = " Its accuracy needs less compression." if len(risks) < len(failed) else ""
    names = enumerate_words([in_text(f.metric) for f in risks])
    menders = []
    for other in ix.audit.candidates:
        if other.defense is None or other.role != "candidate" or other.technique != candidate.technique:
            continue
        theirs = [ix.findings.get(f"{other.name}/{suffix(f)}") for f in risks]
        if all(t is not None and t.verdict == "pass" and _safer(t, f) for t, f in zip(theirs, risks, strict=True)):
            menders.append(other)
    if not menders:
        return f"None of the measured defenses mends its {names}.{rest}"

    def other_recipe(c: Candidate) -> bool:
        return _bones(c.recipe) != _bones(candidate.recipe)

    best = min(menders, key=lambda c: (other_recipe(c), c.verdict != "pass", -c.accuracy.estimate))
    cost = signed(best.accuracy.estimate - candidate.accuracy.estimate, "accuracy")
    also = "" if best.verdict == "pass" else f", itself {best.verdict} on another count"
    how = (
        f"What mends {names}: {label(best.defense_words or best.defense or '')}, measured as {label(best.name)}{also} "
        f"(accuracy {cost} points)."
    )
    other = " That is another recipe of the same kind; this one was not measured with it." if other_recipe(best) else ""
    return f"{how}{other}{rest}"


def without_name(text: str | None, name: str) -> str:
    """A deciding sentence without the candidate's name in front, for use beside that name."""
    return sentence((text or "").removeprefix(f"{name}: "))


def _safer(one: Finding, other: Finding) -> bool:
    if one.estimate is None or other.estimate is None:
        return False
    difference = one.estimate.estimate - other.estimate.estimate
    return difference > 0 if one.better == "higher" else difference < 0


# --- risks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """The ends of the small interval bars of one table."""

    low: float
    high: float

    def at(self, value: float) -> str:
        """Where a value stands, in percent of the width, as a style sheet wants it."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.1f}"


def _nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next((step * power for step in (1, 2, 2.5, 5) if value <= step * power * 1.0001), 10 * power)


def estimate_scale(column: Column) -> Scale:
    """0 to 100 % for rates that are better high and for copies; 0 to the next round number else."""
    found = [f.estimate for f in column.findings.values() if f.estimate is not None]
    if metric(column.metric).unit == "score":
        low, high = min([0.45, *(e.low for e in found)]), max([0.6, *(e.high for e in found)])
        return Scale(math.floor(low * 20) / 20, math.ceil(high * 20) / 20)
    top = max([0.01, *(e.high for e in found)])
    return Scale(0.0, 1.0 if top > 0.4 else _nice(top))


def change_scale(ix: Index, column: Column) -> Scale:
    """Zero, every interval of a change and the limit, with a little air."""
    ends = [0.0]
    for finding in column.findings.values():
        ends += [end for c in finding.changes[:1] for end in (c.low, c.high)]
        gate = ix.gate(finding)
        if gate is not None and gate.limit is not None and gate.compares == "change":
            ends.append(gate.limit * 1.3)
    reach = max(ends) - min(ends) or 0.02
    return Scale(min(ends) - 0.04 * reach, max(ends) + 0.04 * reach)


def takeaways(ix: Index, column: Column) -> list[str]:
    """What the figures of one column say, worked out: verdicts, who changed most, where the dense model stands."""
    rows = [f for f in column.findings.values() if f.candidate in ix.audit.release]
    sentences = []
    gated = [f for f in rows if f.gated]
    if gated:
        counts = [
            f"{count} {verdict.replace('-', ' ')}"
            for verdict in ("pass", "fail", "inconclusive", "not-measured")
            if (count := sum(f.verdict == verdict for f in gated))
        ]
        sentences.append(f"Of {plural(len(gated), 'judged candidate')}: {enumerate_words(counts)}.")
    higher = metric(column.metric).better == "higher"
    sign = 1 if higher else -1
    compared = sorted((f for f in rows if f.changes), key=lambda f: sign * f.changes[0].difference)
    if compared:
        worst, moved = compared[0], compared[0].changes[0]
        if sign * moved.difference >= 0:
            sentences.append("No candidate is worse than its parent.")
        else:
            doubt = "; the interval includes no change" if moved.low <= 0 <= moved.high else ""
            kind = "loss" if higher else "rise"
            sentences.append(f"Largest {kind}: {label(worst.candidate)}, {change(moved, column.metric)}{doubt}.")
    base = column.findings.get(ix.plain.name) if ix.plain else None
    if base is not None and base.estimate is not None:
        sentences.append(f"The dense model itself stands at {estimate(base.estimate, column.metric)}.")
    missing = [f for f in column.findings.values() if f.estimate is None]
    if missing:
        sentences.append(f"Not measured for {enumerate_words([label(f.candidate) for f in missing])}.")
    return sentences


def threats(findings: Iterable[Finding]) -> list[ThreatModel]:
    """The attackers of some findings; those that differ in their budget only are told in one."""
    budgets: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        known = budgets.setdefault((finding.threat_model.access, finding.threat_model.knowledge), [])
        if finding.threat_model.budget not in known:
            known.append(finding.threat_model.budget)
    return [ThreatModel(access=a, knowledge=k, budget=" or ".join(b)) for (a, k), b in budgets.items()]


@dataclass(frozen=True)
class Hits:
    """Per class or group: the figures of every model, the worst of each row marked."""

    groups: list[str]
    rows: list[tuple[str, list[tuple[str, str]], int | None]]
    sizes: list[int | None]
    sentence: str


def who_is_hit(ix: Index, column: Column) -> Hits | None:
    """None when no finding of the column tells groups apart."""
    tables = {
        name: {str(row.get("name")): row for row in finding.who_is_hit if isinstance(row.get("estimate"), int | float)}
        for name, finding in column.findings.items()
        if finding.who_is_hit
    }
    if not tables:
        return None
    groups = list(dict.fromkeys(group for table in tables.values() for group in table))
    classes = {name: place for place, name in enumerate(ix.audit.data.classes)}
    groups.sort(key=lambda group: classes.get(group, len(classes)))
    sign = 1 if metric(column.metric).better == "higher" else -1
    rows, tally = [], dict.fromkeys(groups, 0)
    for name, table in tables.items():
        known = [
            (sign * _number(table[group], "estimate"), place) for place, group in enumerate(groups) if group in table
        ]
        worst = min(known)[1] if known else None
        if worst is not None:
            tally[groups[worst]] += 1
        rows.append((name, [_hit(table.get(group), column.metric) for group in groups], worst))
    most = max(groups, key=lambda group: tally[group])
    sizes = [next((int(_number(t[g], "n")) for t in tables.values() if g in t and "n" in t[g]), None) for g in groups]
    sentence = f"\u201c{label(most)}\u201d is hit hardest in {tally[most]} of {plural(len(rows), 'model')}."
    return Hits(groups, rows, sizes, sentence)


def _number(row: dict[str, str | float | int], key: str) -> float:
    return float(row[key])


def _hit(row: dict[str, str | float | int] | None, name: str) -> tuple[str, str]:
    if row is None:
        return "\u2013", ""
    ends = interval(_number(row, "low"), _number(row, "high"), name) if {"low", "high"} <= row.keys() else ""
    return figure(_number(row, "estimate"), name), ends


# --- defenses --------------------------------------------------------------------------------------------------------


def difference(one: Estimate, other: Estimate) -> tuple[float, float, float]:
    """`one - other` with a 95 % interval from the two intervals (Newcombe's method 10, as if the records differed).

    Both figures usually rest on the same records, so this interval is wider than a paired one: it errs on the safe side.
    """
    middle = one.estimate - other.estimate
    below = math.hypot(one.estimate - one.low, other.high - other.estimate)
    above = math.hypot(one.high - one.estimate, other.estimate - other.low)
    return middle, middle - below, middle + above


@dataclass(frozen=True)
class Bought:
    """What one defense does to one risk figure of one model."""

    column: Column
    hardened: Finding
    plain: Finding | None
    gain: tuple[float, float, float] | None
    words: str
    naive: Part | None


@dataclass(frozen=True)
class Hardened:
    """A hardened model beside its counterpart without the defense."""

    candidate: Candidate
    plain: Candidate | None
    accuracy: tuple[float, float, float] | None
    size_factor: float | None
    time_factor: float | None
    bought: list[Bought]


def naive(ix: Index, finding: Finding) -> Part | None:
    """What an evaluation by an attacker who does not know the defense would have reported, if that looks better.

    For stored random rounding: the attacker without the draw. Else the single attack that shows the model in the best
    light. None when nothing looks better than the finding itself.
    """
    if finding.estimate is None:
        return None
    without = ix.findings.get(f"{finding.id}/without-draw")
    if without is not None and without.estimate is not None:
        e = without.estimate
        return Part(name="an attacker without the draw", estimate=e.estimate, low=e.low, high=e.high)
    sign = 1 if finding.better == "higher" else -1
    ran = [p for p in finding.parts if p.estimate is not None]
    best = max(ran, key=lambda p: sign * (p.estimate or 0.0), default=None)
    if best is None or best.estimate is None or sign * (best.estimate - finding.estimate.estimate) <= 1e-9:
        return None
    return best.model_copy(update={"name": f"{best.name} alone"})


def hardened_models(ix: Index, shown: Sequence[Column]) -> list[Hardened]:
    """One row per model made with a defense, dense ones first."""
    rows = []
    for candidate in sorted((c for c in ix.audit.candidates if c.defense), key=lambda c: c.role != "dense"):
        plain = counterpart(ix, candidate)
        times = [latency(ix.audit, c.name, 1) for c in (candidate, plain) if c is not None]
        bought = []
        for column in shown:
            finding = column.findings.get(candidate.name)
            if finding is None:
                continue
            base = column.findings.get(plain.name) if plain else None
            gain = None
            if finding.estimate is not None and base is not None and base.estimate is not None:
                gain = difference(finding.estimate, base.estimate)
            bought.append(Bought(column, finding, base, gain, _gain_words(gain, column), naive(ix, finding)))
        rows.append(
            Hardened(
                candidate,
                plain,
                difference(candidate.accuracy, plain.accuracy) if plain else None,
                candidate.footprint.payload_bytes / plain.footprint.payload_bytes if plain else None,
                times[0] / times[1] if len(times) == 2 and times[0] is not None and times[1] else None,
                bought,
            )
        )
    return rows


def _gain_words(gain: tuple[float, float, float] | None, column: Column) -> str:
    if gain is None:
        return "no comparison"
    sign = 1 if metric(column.metric).better == "higher" else -1
    low, high = sorted((sign * gain[1], sign * gain[2]))
    return "better" if low > 0 else "worse" if high < 0 else "no clear effect"


def defense_sentences(rows: list[Hardened]) -> list[str]:
    """One sentence per defense: its best clear gain, and what it makes worse."""
    sentences = []
    for name in dict.fromkeys(row.candidate.defense for row in rows):
        mine = [(row, b) for row in rows if row.candidate.defense == name for b in row.bought]
        words = defense(name or "")
        buys, harms = (
            list(dict.fromkeys(RISKS[b.column.risk].title.lower() for _, b in mine if b.words == said))
            for said in ("better", "worse")
        )
        costs = [row.accuracy[0] for row in rows if row.candidate.defense == name and row.accuracy is not None]
        text = f"{words}: {'helps against ' + enumerate_words(buys) if buys else 'no clear gain against an attacker who knows it'}"
        if harms:
            text += f"; makes {enumerate_words(harms)} easier"
        if costs:
            span = sorted({signed(min(costs), "accuracy"), signed(max(costs), "accuracy")})
            ends = (
                f"{signed(min(costs), 'accuracy')} to {signed(max(costs), 'accuracy')}" if len(span) == 2 else span[0]
            )
            text += f"; accuracy {ends} points"
        sentences.append(text + ".")
    return sentences


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


def statements(rows: list[Hardened]) -> list[tuple[str, dict[str, Any]]]:
    """What the defenses promise: the models it holds for, and the promise."""
    grouped: list[tuple[list[str], dict[str, Any]]] = []
    for row in rows:
        promise = row.candidate.statement
        same = next((names for names, known in grouped if known == promise), None)
        if same is not None:
            same.append(label(row.candidate.name))
        elif promise:
            grouped.append(([label(row.candidate.name)], promise))
    return [(enumerate_words(names), promise) for names, promise in grouped]


def draw_rows(candidate: Candidate) -> list[tuple[str, float, float, list[float]]]:
    """Stochastic rounding: per figure its name, the mean and the worst over the draws, and all of them."""
    keys = [
        key
        for key in dict.fromkeys(k for draw in candidate.draws for k in draw)
        if key in ("accuracy", "robust_accuracy")
    ]
    rows = []
    for key in keys:
        values = [draw[key] for draw in candidate.draws if key in draw]
        rows.append((key, sum(values) / len(values), min(values), values))
    return rows


def scope_words(ix: Index) -> str:
    """How many candidates the verdict covers and how they fared, in a sentence."""
    released = [ix.candidates[name] for name in ix.audit.release if name in ix.candidates]
    counts = [f"{sum(c.verdict == v for c in released)} {v}" for v in ("pass", "fail", "inconclusive") if any(c.verdict == v for c in released)]  # fmt: skip
    others = len(ix.audit.candidates) - len(released)
    return (
        f"The verdict covers {plural(len(released), 'candidate')} up for release"
        + (f": {enumerate_words(counts)}" if counts else "")
        + f". {plural(others, 'more model')} {'is' if others == 1 else 'are'} shown for comparison and not judged."
    )


def worst_words(ix: Index, candidate: Candidate) -> tuple[str, str]:
    """The finding nearest to or furthest beyond its limit: its figure, and its interval with the change."""
    finding = ix.findings.get(candidate.worst_risk or "")
    if finding is None or finding.estimate is None:
        return "\u2013", ""
    value = finding.estimate
    ends = interval(value.low, value.high, finding.metric)
    if finding.changes:
        moved = finding.changes[0]
        ends += (
            f"; {signed(moved.difference, finding.metric)}{change_unit(finding.metric)} "
            f"{change_interval(moved.low, moved.high, finding.metric)}"
        )
    return f"{metric(finding.metric).name.split(' (')[0]} {figure(value.estimate, finding.metric)}", ends


def common_n(audit: Audit) -> int | None:
    """The number of records behind every accuracy, when it is the same for all."""
    counts = {c.accuracy.n for c in audit.candidates}
    return counts.pop() if len(counts) == 1 else None
