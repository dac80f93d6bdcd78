"""What the section of one risk says: scales of its bars, takeaways, its attackers, and who is hit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...attacks.risk import ACCURACY, Metric
from ..schema.quantity_rows import Quantity, Transfer
from ..schema.rows import Finding, GroupEstimate, ThreatModel
from ..schema.wording import change, enumerate_words, estimate, figure, interval, label, number, plural, quantity
from .pictures import Shown, pattern
from .views import Column, Index

BUDGETS = 3  # of attackers alike but for them, that are named


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
    """0 to 100 % for rates above 40 %; else 0 to the next round number, below 0 too where there are such numbers."""
    found = [f.estimate for f in column.findings.values() if f.estimate is not None]
    if column.metric.unit == "number":
        lowest, highest = min([0.0, *(e.low for e in found)]), max([0.0, *(e.high for e in found)])
        low, high = -_nice(-lowest) if lowest < 0 else 0.0, _nice(highest) if highest > 0 else 0.0
        return Scale(low, high if high > low else low + 1.0)
    if column.metric.unit == "score":
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
    higher = column.metric.better == "higher"
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
    sentences += sorted({f.chosen for f in column.findings.values() if f.chosen is not None})
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
    return [ThreatModel(access=a, knowledge=k, budget=_budgets(b)) for (a, k), b in budgets.items()]


def _budgets(told: Sequence[str]) -> str:
    """Some of them; that there are more is said."""
    some = " or ".join(told[:BUDGETS])
    return some if len(told) <= BUDGETS else f"{some}, and {len(told) - BUDGETS} more"


@dataclass(frozen=True)
class Hits:
    """Per class or group: the figures of every model, the worst of each row marked."""

    groups: list[str]
    rows: list[tuple[str, list[tuple[str, str]], int | None]]
    sizes: list[int]
    sentence: str


def who_is_hit(ix: Index, column: Column) -> Hits | None:
    """None when no finding of the column tells groups apart."""
    tables = {
        name: {row.name: row for row in finding.who_is_hit}
        for name, finding in column.findings.items()
        if finding.who_is_hit
    }
    if not tables:
        return None
    groups = list(dict.fromkeys(group for table in tables.values() for group in table))
    classes = {name: place for place, name in enumerate(ix.audit.data.classes)}
    groups.sort(key=lambda group: classes.get(group, len(classes)))
    sign = 1 if column.metric.better == "higher" else -1
    rows, tally = [], dict.fromkeys(groups, 0)
    for name, table in tables.items():
        known = [(sign * table[group].estimate, place) for place, group in enumerate(groups) if group in table]
        worst = min(known)[1] if known and min(known)[0] < max(known)[0] else None  # where all are alike, none is
        if worst is not None:
            tally[groups[worst]] += 1
        rows.append((name, [_hit(table.get(group), column.metric) for group in groups], worst))
    most = max(groups, key=lambda group: tally[group])
    sizes = [next(table[group].n for table in tables.values() if group in table) for group in groups]
    sentence = f"\u201c{label(most)}\u201d is hit hardest in {tally[most]} of {plural(len(rows), 'model')}."
    if not tally[most]:
        sentence = "No class or group is hit harder than another."
    surely = [
        f"{label(name)} ({enumerate_words([label(group) for group in finding.worse])})"
        for name, finding in column.findings.items()
        if finding.worse
    ]
    if surely:
        sentence += f" Worse than for its parent, beyond chance: {enumerate_words(surely)}."
    return Hits(groups, rows, sizes, sentence)


def _hit(row: GroupEstimate | None, metric: Metric) -> tuple[str, str]:
    if row is None:
        return "\u2013", ""
    return figure(row.estimate, metric), interval(row.low, row.high, metric)


@dataclass(frozen=True)
class Described:
    """What stands beside the figures of one column: a column per thing that is described, a row per model."""

    titles: list[tuple[str, str]]  # the thing, and what is said of it: "L-inf change", "median / largest"
    rows: list[tuple[str, list[tuple[str, str]]]]  # the model; per title its figures, and of how many records


def described(column: Column) -> Described | None:
    """None where no finding of the column describes anything."""
    told: dict[str, dict[str, list[Quantity]]] = {}
    titles: dict[str, dict[str, None]] = {}
    for name, finding in column.findings.items():
        for one in finding.quantities:
            told.setdefault(name, {}).setdefault(one.name, []).append(one)
            titles.setdefault(one.name, {})[one.statistic] = None
    if not told:
        return None
    rows = [(name, [_described(own.get(title, [])) for title in titles]) for name, own in told.items()]
    return Described([(title, " / ".join(statistics)) for title, statistics in titles.items()], rows)


def pictured(columns: Sequence[Column], pictures: Mapping[str, list[Shown]]) -> list[tuple[str, list[Shown]]]:
    """By the model's name, the pictures of its records under these figures."""
    findings = [finding for column in columns for finding in column.findings.values()]
    return [(finding.candidate, pictures[finding.id]) for finding in findings if finding.id in pictures]


def patterns(columns: Sequence[Column]) -> list[tuple[str, str, str]]:
    """By the model's name, what computed pictures show and their addresses."""
    found = [finding for column in columns for finding in column.findings.values()]
    return [(one.candidate, one.pattern.title, pattern(one.pattern)) for one in found if one.pattern is not None]


def _described(own: list[Quantity]) -> tuple[str, str]:
    if not own:
        return "\u2013", ""
    return " / ".join(map(quantity, own)), number(own[0].n)


@dataclass(frozen=True)
class Transferred:
    """Whom else the inputs found on one model fool: a row per model they were made on, a column per model asked."""

    asked: list[str]
    rows: list[tuple[str, list[tuple[str, str, str, int] | None]]]  # share, interval, n, and the shade from 0 to 4


SHADES = 5


def transferred(column: Column) -> Transferred | None:
    """None where no finding of the column was asked of another model. Rows and columns stand in the audit's order."""
    tables = {
        name: {one.model: one for one in finding.transfers}
        for name, finding in column.findings.items()
        if finding.transfers
    }
    if not tables:
        return None
    met = {model for table in tables.values() for model in table}
    asked = [name for name in column.findings if name in met] + sorted(met - column.findings.keys())

    def cell(one: Transfer | None) -> tuple[str, str, str, int] | None:
        if one is None:
            return None
        shade = min(SHADES - 1, int(SHADES * one.estimate))
        return figure(one.estimate, ACCURACY), interval(one.low, one.high, ACCURACY), f"n = {number(one.n)}", shade

    return Transferred(asked, [(name, [cell(table.get(model)) for model in asked]) for name, table in tables.items()])
