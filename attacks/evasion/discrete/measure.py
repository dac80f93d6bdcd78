"""Evidence of evasion by exchange -> robust accuracy at the gate's number of changes, and what it must look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import PositiveInt

from ....targets.certificate import AGREEMENT
from ....targets.form import Array, Arrays, Count, Document, Form, Layout, Share, require
from ...access import Access, Flag
from ...case import Evidence
from ...elsewhere import parts_elsewhere, wrong_elsewhere
from ...measurement import Auc, Bools, Comparison, Fragile, MeasuredPart, Measurement, Quantity, Rate, ThreatModel
from ...preparation import Ran, Results, Scope
from ...statistics.rates import percent
from ..compare import BOTH_WAYS
from ..likeness.described import first_wrong, fragile, quantities, smallest
from ..likeness.distances import VALUES, consistent, layout
from ..measure import by_group
from ..radius import LEAST
from ..risk import ROBUST_ACCURACY
from .exchanged import ALIKE, TRANSFER, fooled_by_others
from .parameters import Changes, SubstitutionParameters
from .running import ACCESS, ANSWERS, GRADIENT

EXTREME = 0.9  # of the accuracy: a probed model that keeps more, or less than the rest to one, tells nothing apart


def measure_substitution(attack: SubstitutionParameters, results: Results) -> list[Measurement]:
    """The worst case over the parts, with the change against each baseline over what both sides faced alike."""
    model, data = results.model, results.scope.data
    noun = "tokens" if data.structure.tokens else "features"
    setting: dict[str, str | float | int] = {} if attack.open else {f"changed {noun}": attack.gate}
    evidence, wrong = _found(attack, results, model.name)
    if evidence is None or attack.open:
        why = results.why(Ran(model.name))
        return [Measurement(ROBUST_ACCURACY, f"worst case over changed {noun}", None, reason=why, setting=setting)]
    comparisons = [
        comparison
        for name in model.baselines
        if (comparison := _like_for_like(attack, results, name, evidence, wrong)) is not None
    ]
    counted = {part for one in comparisons for part in one.counted}
    parts = [
        MeasuredPart(
            part,
            Rate(~_fooled(evidence, part, attack.gate)),
            tuple(evidence.flags.get(part, ())),
            counted=not model.baselines or part in counted,
        )
        for part in evidence.summary["parts"]
    ]
    others = [fooled for fooled, _ in fooled_by_others(attack, results, attack.gate).values()]
    if others:
        taken = ~np.asarray(evidence.arrays["clean_correct"], dtype=bool) | np.logical_or.reduce(others)
        parts.append(MeasuredPart(TRANSFER, Rate(~taken), counted=BOTH_WAYS in counted))
    parts += parts_elsewhere(wrong, counted if model.baselines else None)
    parts += [MeasuredPart(part, None, skipped=why) for part, why in evidence.skipped.items()]
    alone = [part.name for part in parts if part.outcome is not None and not part.counted]
    notes = _notes(attack, evidence)
    if data.undeclared_blocks:
        notes.append(
            "One-hot blocks that nobody declared were taken as they are seen; what an attacker cannot change is to be "
            "declared (immutable)."
        )
    if alone and comparisons:
        notes.append(f"What this model alone faced ({', '.join(alone)}) is in its own figure only.")
    elif model.baselines and not comparisons:
        notes.append("No change is given: nothing was measured alike on this model and on the one it came from.")
    robust = _robust(evidence, attack.gate)
    told, frail = _described(attack, evidence)
    return [
        Measurement(
            ROBUST_ACCURACY,
            "worst case per record over " + ", ".join(part.name for part in parts if part.outcome is not None),
            Rate(robust),
            _threat(attack, evidence, transferred=bool(others)),
            setting=setting,
            chosen=_chosen_words(attack, results),
            available=len(data.evaluation_ids),
            comparisons=tuple(comparisons),
            flags=_flags(attack, results, model.name, evidence),
            notes=tuple(notes),
            parts=tuple(parts),
            curves=_curves(evidence),
            groups=by_group(results, evidence.arrays["ids"], robust),
            quantities=told,
            fragile=frail,
        )
    ]


def _found(attack: SubstitutionParameters, results: Results, model: str) -> tuple[Evidence | None, dict[str, Bools]]:
    """The evidence on a model, in whose worst case is what it gets wrong in other runtimes, and of the measured model
    what its baselines' inputs fool; and the first by itself.
    """
    evidence, wrong = results.evidence(Ran(model)), wrong_elsewhere(results, model, attack.count)
    if evidence is None or attack.open:
        return evidence, {}
    worst = {}
    for changes in attack.changes:
        found = [*wrong.values()] if changes >= attack.gate else []
        if model == results.model.name:
            found += [mine for mine, _ in fooled_by_others(attack, results, changes).values()]
        worst[f"worst/{changes}"] = np.logical_or.reduce([~_robust(evidence, changes), *found])
    return replace(evidence, arrays=evidence.arrays | worst), wrong


def _fooled(evidence: Evidence, part: str, changes: int) -> Bools:
    return np.asarray(evidence.arrays[f"fooled/{part}/{changes}"], dtype=bool)


def _robust(evidence: Evidence, changes: int) -> Bools:
    return ~np.asarray(evidence.arrays[f"worst/{changes}"], dtype=bool)


def _flags(attack: SubstitutionParameters, results: Results, model: str, evidence: Evidence) -> tuple[str, ...]:
    """Why the worst case on a model may be too optimistic. Where the model was asked about every single change, it
    hangs on no gradient.
    """
    flags = set(evidence.summary["union_flags"])
    if evidence.summary["moves"] > attack.first:
        if evidence.agreement is not None and evidence.agreement < AGREEMENT:
            flags.add(Flag.TWIN_DISAGREES.value)
        if results.without_twin(model) is not None:
            flags.add(Flag.NO_WHITE_BOX.value)
    if results.scope.data.bounds_doubt and attack.reach:
        flags.add(Flag.BOUNDS_DOUBTFUL.value)
    if attack.chosen is not None and not 1 - EXTREME <= attack.chosen.kept <= EXTREME:
        flags.add(Flag.EPSILON_EXTREME.value)
    return tuple(sorted(flags))


def _like_for_like(
    attack: SubstitutionParameters, results: Results, name: str, mine: Evidence, wrong: dict[str, Bools]
) -> Comparison | None:
    """Over the parts that ran on both models, where both had the same features to change."""
    theirs, wrong_there = _found(attack, results, name)
    if theirs is None or any(mine.summary[key] != theirs.summary[key] for key in ("changes", *ALIKE)):
        return None
    both = [part for part in mine.summary["parts"] if part in theirs.summary["parts"]]
    if not both:
        return None
    again = [one for one in wrong if one in wrong_there]
    replays = fooled_by_others(attack, results, attack.gate).get(name)
    own, other = (
        Rate(
            ~np.logical_or.reduce(
                [
                    *(_fooled(some, part, attack.gate) for part in both),
                    *(off[one] for one in again),
                    *([] if replays is None else [replays[side]]),
                ]
            )
        )
        for side, (some, off) in enumerate(((mine, wrong), (theirs, wrong_there)))
    )
    clean = float(np.mean(theirs.arrays["clean_correct"]))
    chance = 1 / results.scope.data.classes
    return Comparison(
        baseline=name,
        own=own,
        theirs=other,
        counted=(*both, *([] if replays is None else [BOTH_WAYS]), *again),
        flags=tuple(sorted({*_flags(attack, results, name, theirs), *results.flags(name)})),
        floor=chance if chance < clean / 6 else 0.0,  # with few classes an attack pushes any model below chance
        instead=_instead(attack, name, theirs),
    )


def _instead(attack: SubstitutionParameters, name: str, evidence: Evidence) -> str | None:
    """What a baseline keeps after fewer changes, where it keeps next to nothing at the gate."""
    clean = float(np.mean(evidence.arrays["clean_correct"]))
    if _robust(evidence, attack.gate).mean() >= LEAST * clean:
        return None
    enough = [one for one in attack.changes if one < attack.gate and _robust(evidence, one).mean() >= LEAST * clean]
    if not enough:
        return "a smaller `reach` leaves numbers nearer to what they are; auto looks for one"
    kept = percent(_robust(evidence, enough[-1]))
    return f"after {enough[-1]} {'change' if enough[-1] == 1 else 'changes'} {name} keeps {kept}: name that as the gate"


def _threat(attack: SubstitutionParameters, evidence: Evidence, *, transferred: bool) -> ThreatModel:
    parts, noun = evidence.summary["parts"], "token" if evidence.summary["tokens"] else "feature"
    access = ACCESS[GRADIENT if GRADIENT in parts else ANSWERS]
    has = "the shipped bytes (and so a differentiable twin), their answers"
    has = has if access is Access.WHITE_BOX else "the scores that the file answers"
    has += " and the dense model it came from" if transferred else ""
    budget = f"{attack.gate} of {evidence.summary['features']} {noun}s changed"
    budget = budget.replace("s changed", " changed") if evidence.summary["features"] == 1 else budget
    if noun == "feature":
        moved = f"numbers by up to {100 * evidence.summary['reach']:.3g} % of their range"
        budget += f"; categories to any other, {moved if evidence.summary['reach'] else 'numbers not at all'}"
    return ThreatModel(access, f"has {has}", budget)


def _notes(attack: SubstitutionParameters, evidence: Evidence) -> list[str]:
    summary, notes = evidence.summary, []
    if summary["moves"] <= attack.first:
        notes.append(f"The model was asked about every single change there is ({summary['moves']} of a record).")
    if summary["padding"] is not None:
        notes.append(f"Token {summary['padding']} is taken for padding, and its places stay as they are.")
    if attack.costs:
        notes.append("Some features count as several changes, as the plan's costs have it.")
    if summary["without_gradient"]:
        n, count = len(evidence.arrays["ids"]), summary["without_gradient"]
        notes.append(f"{GRADIENT}: {count} of {n} records ({100 * count / n:.1f} %) gave it none and withstood it.")
    return notes


def _chosen_words(attack: SubstitutionParameters, results: Results) -> str | None:
    """How the gate and the reach were chosen; None where the plan names both."""
    chosen = attack.chosen
    if chosen is None:
        return None
    tokens, model = results.scope.data.structure.tokens, results.scope.reference.name
    noun = ("token" if tokens else "feature") + ("" if chosen.changes == 1 else "s")
    reach = "" if tokens else f" and a reach of {chosen.reach:g}"
    probe = "; ".join(
        ("" if tokens else f"reach {float(reach):g}: ") + ", ".join(f"{100 * share:.0f} %" for share in shares)
        for reach, shares in sorted(chosen.probe.items(), key=lambda one: -float(one[0]))
    )
    return (
        f"{chosen.changes} changed {noun}{reach}: chosen by a quick probe of {chosen.records} of the attacker's "
        f"records, where {model} keeps {100 * chosen.kept:.0f} % of its accuracy there. Its robust accuracy after "
        f"{', '.join(map(str, attack.changes))} changes{'' if tokens else ', by reach'}: {probe}."
    )


def _curves(evidence: Evidence) -> dict[str, list[tuple[float, Rate]] | Auc]:
    clean = (0.0, Rate(np.asarray(evidence.arrays["clean_correct"], dtype=bool)))
    changes = evidence.summary["changes"]
    curves: dict[str, list[tuple[float, Rate]] | Auc] = {
        "worst case": [clean, *((float(one), Rate(_robust(evidence, one))) for one in changes)]
    }
    for part in evidence.summary["parts"]:
        curves[part] = [clean, *((float(one), Rate(~_fooled(evidence, part, one))) for one in changes)]
    return curves


def _described(attack: SubstitutionParameters, evidence: Evidence) -> tuple[tuple[Quantity, ...], Fragile | None]:
    """How near the inputs that fooled it are to their records, and which records fell first."""
    arrays, changes = evidence.arrays, evidence.summary["changes"]
    clean = np.asarray(arrays["clean_correct"], dtype=bool)
    first = first_wrong([clean, *(_robust(evidence, one) for one in changes)])
    parts = [[_fooled(evidence, part, one) for part in evidence.summary["parts"]] for one in changes]
    ways = [first, *(np.asarray(np.sum(fooled, axis=0)) for fooled in parts)]  # at 0 nobody is asked for
    tokens = evidence.summary["tokens"]
    name = f"Smallest number of changed {'tokens' if tokens else 'features'} that fools"
    settings = [0.0, *map(float, changes)]
    own = [_fooled(evidence, part, attack.gate) for part in evidence.summary["parts"]]  # in no other runtime
    told = quantities(arrays, clean & np.logical_or.reduce(own), {VALUES: "Changed tokens"} if tokens else {})
    return (smallest(name, settings, first), *told), fragile(settings, first, np.asarray(arrays["ids"]), ways)


# -- what stored evidence looks like -----------------------------------------------------------------------------------


class Summary(Document):
    """`Evidence.summary` of the attack."""

    changes: tuple[Changes, ...]
    gate: Changes
    reach: Share
    tokens: bool
    features: PositiveInt
    moves: PositiveInt
    padding: Count | None
    parts: tuple[str, ...]
    without_gradient: Count
    union_flags: tuple[Flag, ...]


def evidence_form(attack: SubstitutionParameters, scope: Scope) -> Form:
    """Of a run with these settings."""
    count = min(attack.count, len(scope.data.evaluation_ids))
    return Form(Summary, partial(_layout, count, scope.data.shape), holds=partial(_holds, attack, scope))


def _layout(count: int, shape: tuple[int, ...], summary: Summary) -> Layout:
    outcomes = Array("bool", (count,))
    return {
        "ids": Array("int64", (count,)),
        "clean_correct": outcomes,
        "adversarial": Array("float32", (count, *shape)),
        **{f"worst/{changes}": outcomes for changes in summary.changes},
        **{f"fooled/{part}/{changes}": outcomes for part in summary.parts for changes in summary.changes},
        **layout(count, shape, tokens=summary.tokens),
    }


def _holds(
    attack: SubstitutionParameters, scope: Scope, found: Summary, arrays: Arrays, files: Mapping[str, Any]
) -> None:
    require(bool(found.parts) and [part for part in ACCESS if part in found.parts] == [*found.parts], "other parts")
    require(found.changes == attack.changes and found.gate in found.changes, "another gate or other changes")
    require(attack.gate_changes in ("auto", found.gate) and attack.reach in ("auto", found.reach), "another setting")
    ids, before = arrays["ids"], ~arrays["clean_correct"]
    require(np.array_equal(ids, scope.data.evaluation_ids.numpy()[: len(ids)]), "ids are not those of the records")
    require(found.without_gradient <= len(ids), "without_gradient counts too many")
    require(consistent(arrays), "changes that contradict each other")
    fooled = dict.fromkeys(found.parts, before)
    for changes in found.changes:
        for part in found.parts:
            now = arrays[f"fooled/{part}/{changes}"]
            require(bool((now >= fooled[part]).all()), "a record that was fooled is not any longer")
            fooled[part] = now
        worst = np.logical_or.reduce([before, *fooled.values()])
        require(np.array_equal(worst, arrays[f"worst/{changes}"]), f"worst/{changes} is not that of its parts")
