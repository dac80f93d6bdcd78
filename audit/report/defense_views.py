"""Hardened models beside the same models without the defense: what it costs, buys, and only seems to buy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...attacks.risk import ACCURACY, Metric
from ..schema.rows import Candidate, Estimate, Finding, Part
from ..schema.wording import enumerate_words, label, signed
from .views import Column, Index, counterpart, latency

ALONE = " alone"  # of several attacks
ILLUSION = "only looks like a win"


def difference(one: Estimate, other: Estimate) -> tuple[float, float, float]:
    """`one - other` with a 95 % interval from the two intervals (Newcombe's method 10, as if the records differed).

    Both figures usually rest on the same records; this interval is wider than a paired one and errs on the safe side.
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
    quality: tuple[float, float, float] | None
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
    without = next((one for one in ix.of(finding.candidate) if _ungated_twin(one, finding)), None)
    if without is not None and without.estimate is not None:
        e = without.estimate
        return Part(
            name=without.attack.partition(" (")[0],
            estimate=e.estimate,
            low=e.low,
            high=e.high,
            skipped=None,
            headline=False,
        )
    sign = 1 if finding.better == "higher" else -1
    ran = [p for p in finding.parts if p.estimate is not None and _in_full(p, finding)]
    best = max(ran, key=lambda p: sign * (p.estimate or 0.0), default=None)
    if best is None or best.estimate is None or sign * (best.estimate - finding.estimate.estimate) <= 1e-9:
        return None
    return best.model_copy(update={"name": f"{best.name}{ALONE}"})


def _in_full(part: Part, finding: Finding) -> bool:
    """Whether it had the budget reported: an attacker who asks fewer queries is a weaker one, not a naive one."""
    return "queries" not in finding.setting or part.name.endswith(f"/{finding.setting['queries']}")


def _ungated_twin(one: Finding, finding: Finding) -> bool:
    """Whether it is the same figure under an attacker who lacks something, which no policy judges."""
    return one.id.startswith(f"{finding.id}/") and one.metric == finding.metric and not one.gateable


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
            words, seems = _gain_words(gain, column), naive(ix, finding)
            if words != "better" and (seen := illusion(seems, finding, base, column)) is not None:
                words, seems = ILLUSION, seen
            bought.append(Bought(column, finding, base, gain, words, seems))
        rows.append(
            Hardened(
                candidate,
                plain,
                difference(candidate.quality, plain.quality) if plain else None,
                candidate.footprint.payload_bytes / plain.footprint.payload_bytes if plain else None,
                times[0] / times[1] if len(times) == 2 and times[0] is not None and times[1] else None,
                bought,
            )
        )
    return rows


def illusion(naive: Part | None, finding: Finding, base: Finding | None, column: Column) -> Part | None:
    """By whom the hardened model seems clearly better than the one without the defense: an attacker who lacks what the
    defense draws at random, or a single attack that did less than it did on that model (where it had nothing to do
    there, as the file's own gradients where nothing rounds: than all did). None: nobody.
    """
    if base is None or base.estimate is None:
        return None
    sides: list[tuple[Part, Part | Estimate]] = (
        [] if naive is None or naive.name.endswith(ALONE) else [(naive, base.estimate)]
    )
    before = {part.name: part for part in base.parts if part.estimate is not None}
    skipped = {part.name for part in base.parts if part.estimate is None}
    ran = [
        part
        for part in finding.parts
        if part.estimate is not None and _in_full(part, finding) and (part.name in before or part.name not in skipped)
    ]
    sides += [
        (part.model_copy(update={"name": part.name + ALONE}), before.get(part.name, base.estimate)) for part in ran
    ]
    gains = [(part, difference(*(_estimated(one, base.estimate.n) for one in (part, plain)))) for part, plain in sides]
    sign = 1 if column.metric.better == "higher" else -1
    clear = [(sign * gain[0], part) for part, gain in gains if _gain_words(gain, column) == "better"]
    return max(clear, key=lambda one: one[0])[1] if clear else None


def _estimated(found: Part | Estimate, n: int) -> Estimate:
    """A part as an estimate; one without an interval has none to be clear by."""
    middle = found.estimate or 0.0
    low, high = (middle if end is None else end for end in (found.low, found.high))
    return Estimate(estimate=middle, low=low, high=high, n=n)


def _gain_words(gain: tuple[float, float, float] | None, column: Column) -> str:
    if gain is None:
        return "no comparison"
    sign = 1 if column.metric.better == "higher" else -1
    low, high = sorted((sign * gain[1], sign * gain[2]))
    return "better" if low > 0 else "worse" if high < 0 else "no clear effect"


def defense_sentences(ix: Index, rows: list[Hardened]) -> list[str]:
    """One sentence per defense: its best clear gain, and what it makes worse."""
    sentences = []
    for name in dict.fromkeys(row.candidate.defense for row in rows):
        mine = [(row, b) for row in rows if row.candidate.defense == name for b in row.bought]
        words = next(label(row.candidate.defense_title or "") for row, _ in mine) if mine else label(name or "")
        buys, harms, illusions = (
            list(dict.fromkeys(ix.audit.risks[b.column.risk].title.lower() for _, b in mine if b.words == said))
            for said in ("better", "worse", ILLUSION)
        )
        costs = [row.quality[0] for row in rows if row.candidate.defense == name and row.quality is not None]
        gain = f"helps against {enumerate_words(buys)}" if buys else "no clear gain against an attacker who knows it"
        text = f"{words}: {gain}"
        if harms:
            text += f"; makes {enumerate_words(harms)} easier"
        if illusions := [one for one in illusions if one not in buys]:
            text += f"; against {enumerate_words(illusions)} it {ILLUSION}, to an attacker who does not know it"
        if costs:
            least, most = signed(min(costs), ACCURACY), signed(max(costs), ACCURACY)
            ends = least if least == most else f"{least} to {most}"
            text += f"; accuracy {ends} points"
        sentences.append(text + ".")
    return sentences


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


def promise_words(promise: dict[str, Any]) -> str:
    """What a training defense promises, as a sentence."""
    epsilon = promise.get("epsilon")
    if epsilon == "void":
        return f"Epsilon: void, because {promise.get('why', 'the promise was broken')}."
    numbers = ("epsilon", "delta", "epsilon_pld_check", "sampling_rate", "noise_multiplier", "max_gradient_norm")
    texts = {"neighbours", "accountant", "steps", "condition"}
    if not texts <= promise.keys() or not all(isinstance(promise.get(name), int | float) for name in numbers):
        return "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in promise.items()) + "."
    return (
        f"Differential privacy with epsilon {epsilon:.2f} at delta {promise['delta']:.1e} "
        f"({promise['neighbours']}), by the {str(promise['accountant']).upper()} accountant; a second accountant (PLD) "
        f"gives {promise['epsilon_pld_check']:.2f}. It follows from a sampling rate of {promise['sampling_rate']:.3f}, "
        f"{promise['steps']} steps, noise multiplier {promise['noise_multiplier']:.2f} and gradients clipped at norm "
        f"{promise['max_gradient_norm']:g}. Condition: {promise['condition']}."
        + (
            f" It counts training ({promise['training_epsilon']:.2f} alone, which the figures before are of) and what "
            f"the compression looked at: {promise['compression']}. It is of this file alone: who also gets another "
            "whose compression looked at the same members learns more than either epsilon says."
            if {"training_epsilon", "compression"} <= promise.keys()
            else ""
        )
        + (f" The architecture changed: {promise['architecture']}." if "architecture" in promise else "")
    )


def draw_rows(ix: Index, candidate: Candidate) -> list[tuple[Metric, float, float, list[float], float, float, int]]:
    """A random recipe: per figure its name, mean and worst over the draws, all of them; the worst's interval, n."""
    rows = []
    for key in dict.fromkeys(name for draw in candidate.draws for name in draw.figures):
        found = [draw.figures[key] for draw in candidate.draws if key in draw.figures]
        values = [one.estimate for one in found]
        metric = ix.metric(key)
        sign = 1 if metric.better == "higher" else -1
        worst = min(found, key=lambda one: sign * one.estimate)
        rows.append((metric, sum(values) / len(values), worst.estimate, values, worst.low, worst.high, worst.n))
    return rows
