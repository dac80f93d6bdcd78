"""Evidence of flipped bits -> how many it takes, of which parameters, beside the model's parent; what notices them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..access import Access, Flag
from ..case import Evidence
from ..measurement import Comparison, Mean, MeasuredPart, Measurement, Outcome, Quantity, Rate, ThreatModel
from ..preparation import Ran, Results
from .evidence_form import Search, Summary, flips_of
from .integrity import CHECKS, DIGEST, SIGNATURES
from .risk import FLIPS_NOTICED, FLIPS_TO_CHANCE, FLIPS_TO_MISS

CLASS, NOTICED = "class", "checksums"  # details of findings
NAMED = 4  # places that a sentence names


def measure_flips(results: Results) -> list[Measurement]:
    """To chance, to miss a class, and the share that checksums notice."""
    model = results.model
    evidence = results.evidence(Ran(model.name))
    if evidence is None:
        why = results.why(Ran(model.name))
        return [Measurement(FLIPS_TO_CHANCE, "the fewest bits to flip in the file", None, reason=why)]
    found = Summary.model_validate(evidence.summary)
    flags = set(results.flags(model.name))
    others = {name: theirs for name in model.baselines if (theirs := results.evidence(Ran(name))) is not None}
    return [
        _to_chance(results, evidence, found, others, flags),
        *_to_miss(results, evidence, found, others, flags),
        *_noticed(results, evidence, found),
    ]


def _to_chance(
    results: Results, evidence: Evidence, found: Summary, others: dict[str, Evidence], flags: set[str]
) -> Measurement:
    counts = _counts(evidence, found, "chance")
    first = next(iter(counts))
    own = [one for one in found.searches if (one.goal, one.part) == ("chance", first)]
    parts = tuple(
        MeasuredPart(
            part,
            Mean(values, least=1.0, step=1.0),
            flags=tuple(_stuck(found, "chance", part)),
            headline=part == first,
            counted=part == first,
        )
        for part, values in counts.items()
    )
    clean, random = evidence.arrays["clean_correct"], evidence.arrays["random"]
    curve: list[tuple[float, Outcome]] = [(0.0, Rate(clean))]
    rows = evidence.arrays["after"][evidence.arrays["flips"][:, 0] == found.searches.index(own[0])]
    curve += [(float(at), Rate(np.asarray(row, bool))) for at, row in enumerate(rows, 1)]
    quantities: tuple[Quantity, ...] = ()
    notes = [_where(evidence, found, first), _scope(found)]
    if len(random):
        quantities = (
            Quantity(f"accuracy after {found.random} random flips", "mean", float(random.mean()), len(random)),
        )
    if found.lost:
        notes.append(
            f"After {found.lost} of the sets of random flips the file no longer runs, which does not go unseen."
        )
    return Measurement(
        FLIPS_TO_CHANCE,
        "the fewest bits to flip in the file, by gradients, each verified on the flipped file",
        Mean(counts[first], least=1.0, step=1.0),
        _threat(found),
        setting={"budget": found.budget, "accuracy at most": round(found.chance, 4)},
        available=len(results.scope.data.evaluation_ids),
        comparisons=_compared(results, "chance", first, counts[first], others),
        parts=parts if len(parts) > 1 else (),
        curves={"accuracy": curve},
        quantities=quantities,
        notes=tuple(one for one in notes if one),
        reason="not gated: no built-in limit on flips",
        flags=tuple(sorted(flags | set(_stuck(found, "chance", first)))),
    )


def _to_miss(
    results: Results, evidence: Evidence, found: Summary, others: dict[str, Evidence], flags: set[str]
) -> list[Measurement]:
    counts = _counts(evidence, found, "class")
    if not counts:
        return []
    part, values = next(iter(counts.items()))
    names = results.scope.data.class_names
    wanted = sorted({names[one.wanted] for one in found.searches if one.goal == "class"})
    return [
        Measurement(
            FLIPS_TO_MISS,
            "the fewest bits to flip in the file so that it misses one class",
            Mean(values, least=1.0, step=1.0),
            _threat(found),
            detail=CLASS,
            setting={"budget": found.budget},
            available=len(results.scope.data.evaluation_ids),
            comparisons=_compared(results, "class", part, values, others),
            notes=(f"Classes to miss: {', '.join(wanted[:10])}{' and others' if len(wanted) > 10 else ''}.",),
            reason="not gated: no built-in limit on flips",
            flags=tuple(sorted(flags | set(_stuck(found, "class", part)))),
        )
    ]


def _noticed(results: Results, evidence: Evidence, found: Summary) -> list[Measurement]:
    attacked = np.array([one.reached for one in found.searches], bool)
    if not attacked.any():
        return []
    by = {
        check: Rate(np.asarray(column, bool))
        for check, column in zip(CHECKS, evidence.arrays["noticed"][attacked].T, strict=True)
    }
    altered, seen = evidence.arrays["groups"][attacked].sum(0)
    size = sum(-(-one.width * one.elements // 8) for one in found.tensors)
    costs = ", ".join(f"{-(-found.groups * bits // 8):,} bytes {kind}" for kind, (_, bits) in SIGNATURES.items())
    note = (
        f"For {size:,} bytes of parameters in {found.groups:,} groups: {costs}, 32 bytes {DIGEST} (SHA-256), which has "
        f"to read them all. Of {altered} groups with a flipped bit the first showed {seen}."
    )
    return [
        Measurement(
            FLIPS_NOTICED,
            "attacked files that a keyed checksum of each group notices",
            by[CHECKS[0]],
            ThreatModel(Access.WHITE_BOX, "knows the check and not its key", "the flips of each successful search"),
            detail=NOTICED,
            gateable=False,
            parts=tuple(MeasuredPart(name, rate, headline=name == CHECKS[0]) for name, rate in by.items()),
            notes=(note,),
            reason="not gated: what checks a device makes is not in the file",
        )
    ]


def _counts(evidence: Evidence, found: Summary, goal: str) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Flips of each draw by part, the one with any bit first; one more than the budget where the search failed."""
    counts: dict[str, list[float]] = {}
    for number, one in enumerate(found.searches):
        if one.goal == goal:
            flips = len(flips_of(evidence.arrays, number))
            counts.setdefault(one.part, []).append(float(flips if one.reached else found.budget + 1))
    return {part: np.array(values) for part, values in counts.items()}


def _compared(
    results: Results,
    goal: str,
    part: str,
    own: np.ndarray[tuple[int], np.dtype[np.float64]],
    others: dict[str, Evidence],
) -> tuple[Comparison, ...]:
    found = []
    for name, theirs in others.items():
        counts = _counts(theirs, Summary.model_validate(theirs.summary), goal)
        if part in counts and len(counts[part]) == len(own):
            flags = tuple(sorted(results.flags(name)))
            found.append(Comparison(name, Mean(own, step=1.0), Mean(counts[part]), flags=flags))
    return tuple(found)


def _stuck(found: Summary, goal: str, part: str) -> list[str]:
    stuck = any(one.stuck for one in _of(found, goal, part))
    return [Flag.UNFINISHED.value] if stuck else []


def _of(found: Summary, goal: str, part: str) -> list[Search]:
    return [one for one in found.searches if (one.goal, one.part) == (goal, part)]


def _where(evidence: Evidence, found: Summary, part: str) -> str:
    """Which parameters the flips are of."""
    places = Counter[str]()
    for number, one in enumerate(found.searches):
        if (one.goal, one.part) == ("chance", part):
            for flip in flips_of(evidence.arrays, number):
                tensor = found.tensors[flip.tensor]
                places[f"bit {flip.bit} of {tensor.role} of {tensor.layer}"] += 1
    told = [f"{place} ({count} times)" if count > 1 else place for place, count in places.most_common(NAMED)]
    failed = sum(not one.reached for one in _of(found, "chance", part))
    missed = f" {failed} of {len(_of(found, 'chance', part))} searches did not get there." if failed else ""
    return (f"Flipped: {'; '.join(told)}." if told else "") + missed


def _scope(found: Summary) -> str:
    bits = sum(one.width * one.elements for one in found.tensors)
    return (
        f"{bits:,} bits of {len(found.tensors)} tensors could be flipped. The search had {found.own} records of the "
        "attacker's own each time; the interval is over these draws."
    )


def _threat(found: Summary) -> ThreatModel:
    return ThreatModel(
        Access.WHITE_BOX,
        "has the shipped bytes (and so a differentiable twin), records of its own, and can flip bits where it chooses",
        f"{found.budget} bits at most",
    )
