"""What a point of risk costs: each hardened model beside the same without the defense, and beside the dense model.

Costs are changes of accuracy, payload, time for a record and time to make it, for each point of risk gained. A price
exists only where something surely was gained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...attacks.risk import Metric
from ..schema.policy_rows import margin
from ..schema.rows import Candidate, Change, Estimate, Finding
from ..schema.wording import MINUS, change_interval, enumerate_words, in_text, label, signed
from .defense_views import difference
from .views import Column, Index, counterpart, latency, made_robust, same_recipe, suffix

Ends = tuple[float, float, float]  # estimate, and the two ends of its 95 % interval
POINT = 0.01  # of a share, and of a score such as an AUC
SURELY = 1e-9  # of a gain: what its interval's end is above 0 at least, since a computed 0 need not be one


def ratio(cost: Ends, gain: Ends) -> Ends:
    """`cost / gain` with a 95 % interval, of two figures with theirs (MOVER-R, Donner & Zou 2012, doi
    10.1177/0962280210383082, as if they were independent; of symmetric intervals it is Fieller's).

    Raises:
        ValueError: the gain's interval is not above 0, so that the ratio may be anything.
    """
    (top, top_low, top_high), (bottom, bottom_low, bottom_high) = cost, gain
    if bottom_low <= SURELY * bottom:
        raise ValueError("a ratio to what may be 0 has no interval")

    def end(error: float, spread: float, side: int, outward: bool) -> float:
        """The root of (top - R bottom)^2 = error^2 + R^2 spread^2 on that side."""
        a, c = bottom**2 - spread**2, top**2 - error**2
        root = math.sqrt(max((top * bottom) ** 2 - a * c, 0.0))
        return (top * bottom + side * root) / a if outward else c / (top * bottom - side * root)

    below, above = bottom - bottom_low, bottom_high - bottom
    low = end(top - top_low, above, -1, False) if top_low > 0 else end(top - top_low, below, -1, True)
    high = end(top_high - top, above, 1, False) if top_high < 0 else end(top_high - top, below, 1, True)
    return top / bottom, low, high


@dataclass(frozen=True)
class Price:
    """What one risk figure's gain costs one hardened model, compared with another model.

    Args:
        gain: in the safer direction; in points where the figure is a share or a score.
        n: on what the figure rests, and the fewer of the two.
        paired: the gain is the finding's own paired change; else it is made of two intervals, as if records differed.
        quality: points of accuracy (or of error, sign turned) for each point gained; negative: lost.
        payload, latency: percent of the other's, for each point gained; None: not timed.
        seconds: CPU seconds of making it, for each point gained; None: not known.
    """

    candidate: Candidate
    against: Candidate
    column: Column
    gain: Ends
    n: int
    access: str
    paired: bool
    quality: Ends
    payload: Ends
    latency: Ends | None
    seconds: Ends | None


def is_hardened(candidate: Candidate) -> bool:
    return candidate.defense is not None or made_robust(candidate.recipe)


def prices(ix: Index, shown: Sequence[Column]) -> list[Price]:
    """Of every hardened model and every figure that it surely improves, risk by risk; by the loss of accuracy."""
    found = []
    for column in shown:
        if column.metric.unit == "number":
            continue
        mine = []
        for candidate in filter(is_hardened, ix.audit.candidates):
            others = {one.name: one for one in (counterpart(ix, candidate), ix.plain) if one is not None}
            others.pop(candidate.name, None)
            mine += [one for other in others.values() if (one := _price(ix, column, candidate, other)) is not None]
        found += sorted(mine, key=lambda one: -one.quality[0])
    return found


def unbought(ix: Index, shown: Sequence[Column], bought: Sequence[Price]) -> str:
    """Which of the risks shown no hardened model surely improves, in a sentence; "": none."""
    sold = {price.column.suffix for price in bought}
    left = [one.title.split(" (")[0].lower() for one in shown if one.suffix not in sold and one.metric.unit != "number"]
    return f"No defense of this audit surely improves {enumerate_words(left)}: there is no price." if left else ""


def _price(ix: Index, column: Column, candidate: Candidate, other: Candidate) -> Price | None:
    finding, base = column.findings.get(candidate.name), column.findings.get(other.name)
    if finding is None or finding.estimate is None or base is None or base.estimate is None:
        return None
    own = _change(finding.changes, other.name)
    sign = 1 if column.metric.better == "higher" else -1
    gain = _turned(own or difference(finding.estimate, base.estimate), sign / POINT)
    if gain[1] <= SURELY * gain[0]:
        return None
    changes = [one for one in (candidate.quality_change, candidate.quality_change_dense) if one is not None]
    better = 1 if candidate.quality_metric.better == "higher" else -1
    quality = _turned(_change(changes, other.name) or difference(candidate.quality, other.quality), better / POINT)
    times = [latency(ix.audit, one.name, 1) for one in (candidate, other)]
    made = [ix.audit.environment.candidate_seconds.get(one.name) for one in (candidate, other)]
    return Price(
        candidate,
        other,
        column,
        gain,
        min(finding.estimate.n, base.estimate.n),
        finding.threat_model.access,
        own is not None,
        ratio(quality, gain),
        ratio(_exactly(_percent(candidate.footprint.payload_bytes, other.footprint.payload_bytes)), gain),
        None if times[0] is None or not times[1] else ratio(_exactly(_percent(times[0], times[1])), gain),
        None if made[0] is None or made[1] is None else ratio(_exactly(made[0] - made[1]), gain),
    )


def _change(changes: Sequence[Change], baseline: str) -> Ends | None:
    return next(((one.difference, one.low, one.high) for one in changes if one.baseline == baseline), None)


def _turned(ends: Ends, factor: float) -> Ends:
    middle, *outer = (factor * end for end in ends)
    return middle, min(outer), max(outer)


def _exactly(value: float) -> Ends:
    """Of what has no error of sampling: bytes, and a time that was measured once."""
    return value, value, value


def _percent(own: float, other: float) -> float:
    return 100 * (own / other - 1)


def price_words(ends: Ends | None) -> str:
    """`−0.034 [−0.061, −0.008]`, as many decimals as its size asks for."""
    if ends is None:
        return "\u2013"
    if not any(ends):
        return "0"
    most = max(map(abs, ends))
    decimals = 0 if most >= 100 else 1 if most >= 10 else 2 if most >= 1 else 3
    middle, low, high = (_number(end, decimals) for end in ends)
    return f"{middle} [{low}, {high}]"


def _number(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return (text if float(text) else text[1:]).replace("-", MINUS)


# --- the Pareto front ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A candidate with what one chooses by.

    Args:
        margin: of the worst risk: how far the unfavourable end of its interval keeps within its limit, as a share;
            negative: beyond it.
        n: on what that figure rests.
        beaten_by: names of those at least as good in all three and better in one; empty: it is on the front.
    """

    candidate: Candidate
    risk: str
    margin: float
    value: Estimate
    n: int
    beaten_by: tuple[str, ...]


def choices(ix: Index) -> list[Choice]:
    """The candidates over (accuracy, payload, worst risk): those on the front first, each from the smallest on.

    By the estimates; of the worst risk by the unfavourable end, which is what the policy judges.
    """
    found = []
    for candidate in ix.audit.candidates:
        finding = ix.findings.get(candidate.worst_risk or "")
        gates = [g for g in ix.audit.policy if g.candidate == candidate.name and g.finding == candidate.worst_risk]
        if candidate.role != "candidate" or finding is None or finding.estimate is None or not gates:
            continue
        found.append((candidate, finding, finding.estimate, min(margin(gate, ix.audit.metrics) for gate in gates)))
    merits = {c.name: (c.merit, -c.footprint.payload_bytes, kept) for c, _, _, kept in found}
    rows = []
    for candidate, finding, value, kept in found:
        own = merits[candidate.name]
        beaten = [name for name, m in merits.items() if m != own and all(a >= b for a, b in zip(m, own, strict=True))]
        title = ix.metric(finding.metric).title.split(" (")[0]
        rows.append(Choice(candidate, title, kept, value, value.n, tuple(beaten)))
    return sorted(rows, key=lambda one: (bool(one.beaten_by), one.candidate.footprint.payload_bytes))


def margin_words(choice: Choice, metric: Metric) -> str:
    """In points where the figure is a share or a score."""
    return _number(choice.margin if metric.unit == "number" else choice.margin / POINT, 1)


def beaten_words(choice: Choice) -> str:
    if not choice.beaten_by:
        return "on the front"
    first, *rest = choice.beaten_by
    return f"beaten by {label(first)}" + (f" and {len(rest)} more" if rest else "")


# --- what would mend it ----------------------------------------------------------------------------------------------

DEARER = 2  # mends that are named beside the cheapest


def cheapest_fix(ix: Index, candidate: Candidate) -> str:
    """The measured ways under which the same recipe passes what this candidate fails, cheapest first, in sentences.

    The cheapest loses least accuracy; of two alike, the smaller file, then the one that is made in less time. Where the
    same recipe was not audited in a way that helps, the same technique is looked at.
    """
    failed = [g for g in ix.audit.policy if g.candidate == candidate.name and g.verdict == "fail"]
    if any(g.rule == "lineage" for g in failed):
        return "Have it compressed again from the dense model, by someone you trust, and compare the two files."
    risks = [ix.findings[g.finding] for g in failed if g.finding in ix.findings]
    if not risks:
        lost = "accuracy" if candidate.accuracy is not None else "a lower error"
        return f"No defense gives {lost} back: compress less, or fine-tune." if failed else ""
    rest = " Its accuracy needs less compression." if len(risks) < len(failed) else ""
    names = enumerate_words([in_text(ix.metric(f.metric)) for f in risks])
    fixes = []
    for other in ix.audit.candidates:
        if not is_hardened(other) or other.role != "candidate" or other.technique != candidate.technique:
            continue
        theirs = [ix.findings.get(f"{other.name}/{suffix(f)}") for f in risks]
        if all(t is not None and t.verdict == "pass" and _safer(t, f) for t, f in zip(theirs, risks, strict=True)):
            fixes.append(other)
    if not fixes:
        return f"None of the measured defenses fixes its {names}.{rest}"
    seconds = ix.audit.environment.candidate_seconds
    best, *dearer = sorted(
        fixes,
        key=lambda c: (
            not same_recipe(c, candidate),
            c.verdict != "pass",
            -c.merit,
            c.footprint.payload_bytes,
            seconds.get(c.name, 0.0),
        ),
    )
    also = "" if best.verdict == "pass" else f", itself {best.verdict} on another count"
    how = f"What fixes {names}: {_way(best)}, measured as {label(best.name)}{also} ({_cost(best, candidate)})."
    other_recipe = not same_recipe(best, candidate)
    aside = " That is another recipe of the same kind; this one was not measured with it." if other_recipe else ""
    more = [f"{label(one.name)} ({_cost(one, candidate)})" for one in dearer[:DEARER] if same_recipe(one, candidate)]
    return f"{how}{aside}{f' Dearer: {enumerate_words(more)}.' if more else ''}{rest}"


def _way(candidate: Candidate) -> str:
    lessons = candidate.recipe_words if made_robust(candidate.recipe) else None
    return ", then ".join(label(one, 120) for one in (candidate.defense_words or candidate.defense, lessons) if one)


def _cost(own: Candidate, other: Candidate) -> str:
    metric = own.quality_metric
    middle, low, high = difference(own.quality, other.quality)
    size = own.footprint.payload_bytes / other.footprint.payload_bytes
    return (
        f"{metric.title.lower()} {signed(middle, metric)} points {change_interval(low, high, metric)}, "
        f"n = {min(own.quality.n, other.quality.n)}, payload {size:.2f}\u00d7"
    )


def _safer(one: Finding, other: Finding) -> bool:
    if one.estimate is None or other.estimate is None:
        return False
    gain = one.estimate.estimate - other.estimate.estimate
    return gain > 0 if one.better == "higher" else gain < 0
