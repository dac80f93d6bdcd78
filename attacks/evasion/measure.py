"""Evidence of evasion -> robust accuracy at the gate's epsilon, the worst case per record over all parts.

And what that evidence must look like where it is stored, as far as it follows from the attack or from itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field, JsonValue, PositiveFloat, PositiveInt

from ...targets.data.data import Data
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ...training.ball import Ball, Norm
from ..access import Access, Flag
from ..elsewhere import parts_elsewhere
from ..measurement import (
    NOTHING_RAN,
    Auc,
    Bools,
    Fragile,
    MeasuredPart,
    Measurement,
    Quantity,
    Rate,
    ThreatModel,
    masks_by_group,
)
from ..preparation import Ran, Results, Scope
from .ascent.walk import WALKS
from .black_box.transfer import Transfer
from .compare import (
    BOTH_WAYS,
    REPLAYED,
    Found,
    chosen_radius,
    doubts,
    found_on,
    kept_words,
    like_for_like,
    lost_robustness,
    resolve_radius,
    robust_at,
)
from .likeness.described import first_wrong, fragile, quantities, smallest
from .likeness.distances import consistent, layout
from .parameters import EvasionParameters
from .preparations.asked_of_others import transfers
from .preparations.evade_only import evade_only
from .risk import ROBUST_ACCURACY
from .trust import FALLS

WITHOUT_DRAW = "without-draw"  # the attacker who does not have the shipped draw of a random recipe


def measure_evasion(attack: EvasionParameters, results: Results) -> list[Measurement]:
    """The worst case; where the recipe is random also every draw, and the attacker without the shipped one."""
    found = found_on(results, results.model.name, attack)
    setting: dict[str, str | float | int] = {"norm": attack.norm}
    if found is not None or not attack.automatic:
        setting["epsilon"] = attack.gate if found is None else found.attack.gate
    if found is None:
        why = results.why(Ran(results.model.name))
        rows = [Measurement(ROBUST_ACCURACY, "worst case over all attacks", None, reason=why, setting=setting)]
        return rows + _draws(results, attack)
    rows = [_worst_case(results, attack, found, setting)]
    if results.model.draws:
        rows.append(_without_draw(results, found.attack, setting))
    if (asked := attack.evade_only(results.model, results.scope)) is not None:
        threat, available = _threat(found, results.scope.data), len(results.scope.data.evaluation_ids)
        rows.append(evade_only(results, asked, setting, threat, found.flags, available))
    return rows + _draws(results, attack)


def _worst_case(
    results: Results, attack: EvasionParameters, found: Found, setting: dict[str, str | float | int]
) -> Measurement:
    model, data = results.model, results.scope.data
    comparisons, notes, counted = [], _notes(results, found), set[str]()
    for name in model.baselines:
        baseline = found_on(results, name, attack, model.name)
        comparison = None if baseline is None else like_for_like(results, attack, name, found, baseline)
        if comparison is not None:
            comparisons.append(comparison)
            counted |= set(comparison.counted)
    parts = []
    sent = {part.part for part in attack.parts if isinstance(part, Transfer)}
    for part in found.summary["parts"]:
        alike = not model.baselines or part in counted
        alike |= part in sent and BOTH_WAYS in counted
        parts.append(_part(found, part, tuple(found.part_flags.get(part, ())), counted=alike))
    if found.replayed is not None:
        parts.append(MeasuredPart(REPLAYED, Rate(~found.replayed)))
    parts += parts_elsewhere(found.elsewhere, None if not model.baselines else counted)
    own_parents = {part.part for part in attack.parts if part.uses_parent}  # pointless on a dense model
    parts += [
        MeasuredPart(name, None, skipped=reason)
        for name, reason in found.evidence.skipped.items()
        if name not in found.summary["parts"] and not (name in own_parents and found.replayed is not None)
    ]
    worse, who = lost_robustness(results, found, comparisons)
    notes += who
    told, frail = described(found)
    asked = results.prepared(attack.asked_of_others(model, results.scope))
    alone = [part.name for part in parts if part.outcome is not None and not part.counted]
    if alone and comparisons:
        notes.append(
            f"The change counts {', '.join(comparisons[0].counted)}, which both sides faced alike. What this model "
            f"alone faced ({', '.join(alone)}) is in its own figure only."
        )
    elif model.baselines and not comparisons:
        notes.append("No change is given: nothing was measured alike on this model and on the one it came from.")
    return Measurement(
        ROBUST_ACCURACY,
        "worst case per record over " + ", ".join(part.name for part in parts if part.outcome is not None),
        Rate(found.robust),
        _threat(found, data),
        setting=setting,
        chosen=_radius_words(results, attack),
        available=len(data.evaluation_ids),
        comparisons=tuple(comparisons),
        flags=found.flags,
        notes=tuple(notes),
        parts=tuple(parts),
        curves=_epsilon_curves(found),
        groups=by_group(results, found.evidence.arrays["ids"], found.robust),
        transfers={} if asked is None else transfers(asked, found.evidence),
        worse=worse,
        quantities=told,
        fragile=frail,
    )


def _part(found: Found, part: str, flags: tuple[str, ...], *, counted: bool = True) -> MeasuredPart:
    fooled = found.fooled(part)
    outcome = None if fooled is None else Rate(~fooled)
    return MeasuredPart(part, outcome, flags, found.evidence.skipped.get(part), counted=counted)


def _threat(found: Found, data: Data) -> ThreatModel:
    """The attacker of the parts that ran, not of what the model would have allowed."""
    order = [Access.WHITE_BOX, Access.SCORES, Access.LABELS]
    used = {Access(value) for value in found.summary["part_access"].values()}
    access = next(one for one in order if one in used)
    has = {
        Access.WHITE_BOX: "the shipped bytes (and so a differentiable twin), their answers",
        Access.SCORES: "the scores that the file answers",
        Access.LABELS: "the labels that the file answers",
    }[access]
    parent = " and the dense model it came from" if found.summary["use_parent"] else ""
    if found.replayed is not None:
        parent = " and the candidates made from this model"
    norm = "L-inf" if found.attack.norm == "linf" else "L2"
    budget = f"{norm} epsilon {found.attack.gate:.4g} of the input's range"
    limits = data.structure.words(math.prod(data.shape))
    return ThreatModel(access, f"has {has}{parent}", f"{budget}; {limits}" if limits else budget)


def _notes(results: Results, found: Found) -> list[str]:
    notes = []
    no_twin = results.without_twin(results.model.name)
    if no_twin is not None:
        notes.append(f"No white-box attack: {no_twin}")
    notes += doubts(results, found)
    if results.scope.data.structure.held:
        notes.append(
            "Within epsilon no category can change, so they and what is declared immutable stay as they are: an "
            "attacker who can send another category may do more."
        )
    n = len(found.robust)
    for part, count in found.summary["without_gradient"].items():
        notes.append(
            f"{part}: {count} of {n} records ({100 * count / n:.1f} %) gave it no gradient of their own and withstood "
            "it."
        )
    if results.model.draws:
        notes.append("This row is the shipped draw, attacked through its own bytes: a stored draw is deterministic.")
    return notes


def _radius_words(results: Results, attack: EvasionParameters) -> str | None:
    """How the epsilon was chosen, in two sentences; None where the plan names it."""
    radius = chosen_radius(results, attack)
    if radius is None:
        return None
    how = {
        "ladder": "the largest of a fixed ladder at which",
        "bisected": "found between two rungs of a fixed ladder, where",
        "nearest": "the nearest there is to one half:",
    }[radius["how"]]
    probe = ", ".join(
        f"{float(epsilon):.2g}: {100 * share:.0f} %"
        for epsilon, share in sorted(radius["probe"].items(), key=lambda item: float(item[0]))
    )
    return (
        f"Epsilon {radius['epsilon']:.2g} was chosen by a quick probe: {how} {results.scope.reference.name} keeps "
        f"{kept_words(radius)}. Its robust accuracy there, by epsilon: {probe}."
    )


def _without_draw(results: Results, attack: EvasionParameters, setting: dict[str, str | float | int]) -> Measurement:
    ran = Ran(results.model.name, WITHOUT_DRAW)
    evidence = results.evidence(ran)
    found = None if evidence is None else Found(evidence, attack, robust_at(evidence, attack.gate), (), {}, None)
    parts = [] if found is None else [part for part in found.summary["parts"] if found.fooled(part) is not None]
    told, frail = ((), None) if found is None else described(found)
    return Measurement(
        ROBUST_ACCURACY,
        "worst case for an attacker without the shipped draw (expectation over the other draws)",
        None if found is None else Rate(found.robust),
        NOTHING_RAN if found is None else _threat(found, results.scope.data),
        reason=results.why(ran) if found is None else None,
        detail=WITHOUT_DRAW,
        run=WITHOUT_DRAW,
        gateable=False,
        setting=setting,
        flags=() if found is None else tuple(found.summary["union_flags"]),
        notes=() if found is None else ("Not gated: whoever holds the shipped file holds the draw.",),
        curves={} if found is None else _epsilon_curves(found),
        quantities=told,
        fragile=frail,
        parts=()
        if found is None
        else tuple(_part(found, part, tuple(found.evidence.flags.get(part, ()))) for part in parts),
    )


def _draws(results: Results, attack: EvasionParameters) -> list[Measurement]:
    """Robust accuracy of every draw under one and the same attack: gradients, at the gate."""
    resolved = resolve_radius(results, attack)
    if resolved is None or not results.model.draws:
        return []
    rows = []
    for draw in range(len(results.model.draws) + 1):
        evidence = results.evidence(Ran(results.model.name, f"draw-{draw}"))
        if evidence is not None:
            outcome = Rate(robust_at(evidence, resolved.gate))
            rows.append(Measurement(ROBUST_ACCURACY, "gradients", outcome, run=f"draw-{draw}", draw=draw))
    return rows


def _epsilon_curves(found: Found) -> dict[str, list[tuple[float, Rate]] | Auc]:
    """By part and for the worst case: only where something ran."""
    worst = _robust_by_epsilon(found)
    clean = Rate(worst[0][1])
    by_part: dict[str, list[tuple[float, Rate]]] = {}
    for epsilon, _ in worst[1:]:
        for part in found.summary["parts"]:
            fooled = found.evidence.arrays.get(f"fooled/{part}/{epsilon!r}")
            if fooled is not None:
                by_part.setdefault(part, [(0.0, clean)]).append((epsilon, Rate(~np.asarray(fooled, dtype=bool))))
    return {"worst case": [(epsilon, Rate(robust)) for epsilon, robust in worst], **by_part}


def _robust_by_epsilon(found: Found) -> list[tuple[float, Bools]]:
    """bool [n] each, where anything ran, smallest epsilon first; at 0 the clean answers."""
    worst = [(0.0, np.asarray(found.evidence.arrays["clean_correct"], dtype=bool))]
    for epsilon in found.summary["epsilons"]:
        robust = found.robust if epsilon == found.attack.gate else robust_at(found.evidence, epsilon)
        if epsilon > found.attack.gate:  # with what was tried at the gate alone
            robust = robust & found.robust
        worst.append((epsilon, robust))
    return worst


def described(found: Found) -> tuple[tuple[Quantity, ...], Fragile | None]:
    """How near the inputs that fooled it are to their records, and which records fell first."""
    arrays, worst = found.evidence.arrays, _robust_by_epsilon(found)
    epsilons, first = [epsilon for epsilon, _ in worst], first_wrong([robust for _, robust in worst])
    fooled = worst[0][1] & ~robust_at(found.evidence, found.attack.gate)  # the stored inputs are those of its own run
    own = [[f"fooled/{part}/{epsilon!r}" for part in found.summary["parts"]] for epsilon in epsilons]
    ways = [np.asarray(np.sum([arrays[name] for name in names if name in arrays], axis=0)) for names in own]
    least = smallest("Smallest epsilon that fools", epsilons, first)
    return (least, *quantities(arrays, fooled)), fragile(epsilons, first, np.asarray(arrays["ids"]), ways)


def by_group(results: Results, ids: np.ndarray[Any, Any], robust: Bools) -> dict[str, Rate]:
    """Per class and group, of the attacked records with these ids, int64 [n]."""
    return {name: Rate(robust[mask]) for name, mask in masks_by_group(results.scope.data, ids).items()}


# -- what stored evidence looks like -----------------------------------------------------------------------------------


class Summary(Document):
    """`Evidence.summary` of the evasion attack."""

    norm: Norm
    epsilons: tuple[PositiveFloat, ...]
    gate_epsilon: PositiveFloat
    parts: tuple[str, ...]
    settings: dict[str, dict[str, JsonValue]]
    part_access: dict[str, Access]
    use_parent: tuple[str, ...]
    step: Annotated[float, Field(gt=0, le=1)] | None = None
    union_flags: tuple[Flag, ...]
    without_gradient: dict[str, PositiveInt]


def evidence_form(attack: EvasionParameters, scope: Scope) -> Form:
    """Of a run with these settings."""
    count = min(attack.count, len(scope.data.evaluation_ids))
    everywhere = {part.part for part in attack.parts if part.at == "all"}
    return Form(Summary, partial(_layout, count, scope.data.shape, everywhere), holds=partial(_holds, attack, scope))


def _layout(count: int, shape: tuple[int, ...], everywhere: set[str], summary: Summary) -> Layout:
    outcomes, gate = Array("bool", (count,)), (summary.gate_epsilon,)
    radii = {part: summary.epsilons if part in everywhere else gate for part in summary.parts}
    return {
        "ids": Array("int64", (count,)),
        "clean_correct": outcomes,
        "adversarial": Array("float32", (count, *shape)),
        **{f"worst/{epsilon!r}": outcomes for epsilon in summary.epsilons},
        **{f"fooled/{part}/{epsilon!r}": outcomes for part, tried in radii.items() for epsilon in tried},
        FALLS: Array("float32", (min(WALKS, count),), low=0, high=1, optional=True),
        **layout(count, shape),
    }


def _holds(attack: EvasionParameters, scope: Scope, found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    known = {part.part: part for part in attack.parts}
    require(bool(found.parts) and len({*found.parts}) == len(found.parts), "no parts, or one twice")
    require({*found.parts} <= known.keys(), "a part that the attack does not have")
    settings = {part: known[part].model_dump(mode="json") for part in found.parts}
    require(found.settings == settings, "the settings are not those of the attack")
    require(found.part_access == {part: known[part].access for part in found.parts}, "the access is another")
    require((FALLS in arrays) == (Access.WHITE_BOX in found.part_access.values()), "a walk where none is due, or none")
    require({*found.use_parent} == {part for part in found.parts if known[part].uses_parent}, "use_parent is another")
    require(found.gate_epsilon in found.epsilons and found.norm == attack.norm, "another epsilon or norm")
    named = attack.automatic or ({*found.epsilons} <= {*attack.epsilons} and found.gate_epsilon == attack.gate)
    require(named, "epsilons that the attack does not name")
    ids = arrays["ids"]
    require(np.array_equal(ids, scope.data.evaluation_ids.numpy()[: len(ids)]), "ids are not those of the records")
    most = max(found.without_gradient.values(), default=0)
    require({*found.without_gradient} <= {*found.parts} and most <= len(ids), "without_gradient counts too many")
    slack = Ball(found.norm, found.gate_epsilon, scope.data.non_members.x[:1], scope.data.bounds).tolerance
    far = float(arrays[f"change/{found.norm}"].max(initial=0))
    within = far <= 1.001 * found.gate_epsilon + slack  # their norms were taken in float32
    require(consistent(arrays) and within, "changes that contradict each other, or beyond epsilon")
    worst = ~arrays["clean_correct"]
    for epsilon in found.epsilons:
        outcomes = [arrays.get(f"fooled/{part}/{epsilon!r}") for part in found.parts]
        worst = np.logical_or.reduce([worst, *(one for one in outcomes if one is not None)])
        require(np.array_equal(worst, arrays[f"worst/{epsilon!r}"]), f"worst/{epsilon!r} is not that of its parts")
