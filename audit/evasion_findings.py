"""Evidence of evasion -> findings: robust accuracy at the gate's epsilon, worst case per record over all parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..attacks.attack import Access
from ..attacks.evasion.evasion import Evasion
from .cells import Result
from .evasion_cells import radius_cell
from .evasion_comparison import (
    BOTH_WAYS,
    REPLAYED,
    Measured,
    kept_words,
    like_for_like,
    measured,
    robust_at,
    without_twin,
)
from .findings import Finding, GroupEstimate, Part, Point, ThreatModel
from .lineup import Contender
from .measures import Bools, point, rate
from .reader import NOTHING_RAN, Reader, part_of, shell_of, with_evidence
from .words import number


def evasion(reader: Reader, contender: Contender, attack: Evasion, label: str) -> list[Finding]:
    """Robust accuracy at the gate's epsilon, the worst case per record over all parts."""
    cell = reader.suite.attack_cell(label, contender.name)
    found = measured(reader, contender, attack, label)
    setting: dict[str, str | float | int] = {"norm": attack.norm}
    if found is not None or not attack.automatic:
        setting["epsilon"] = attack.gate if found is None else found.attack.gate
    if found is None:
        shell = shell_of(reader, contender, label, "evasion", "robust_accuracy", "higher", NOTHING_RAN, setting)
        return [shell(reason=reader.why(cell), attack="worst case over all attacks")]
    threat = threat_of(found, reader, contender)
    shell = shell_of(reader, contender, label, "evasion", "robust_accuracy", "higher", threat, setting)
    changes, notes, counted = [], _notes(reader, contender, found), set[str]()
    for name in contender.baselines:
        baseline = measured(reader, reader.suite.lineup.contender(name), attack, label, contender)
        change = None if baseline is None else like_for_like(reader, contender, name, found, baseline, label)
        if change is not None:
            changes.append(change)
            counted |= set(change.counted)
    parts = []
    for part in found.summary["parts"]:
        fooled = found.fooled(part)
        row = part_of(part, None if fooled is None else rate(~fooled), found.result, part)
        alike = not contender.baselines or part in counted
        alike |= part in found.summary["use_parent"] and BOTH_WAYS in counted
        parts.append(row.model_copy(update={"flags": found.part_flags.get(part, []), "counted": alike}))
    if found.replayed is not None:
        parts.append(_replayed_part(found.replayed))
    own_parents = {part.part for part in attack.parts if part.uses_parent}  # pointless on a dense model
    parts += [
        Part(name=name, estimate=None, skipped=reason)
        for name, reason in found.result.document["skipped"].items()
        if name not in found.summary["parts"] and not (name in own_parents and found.replayed is not None)
    ]
    alone = [part.name for part in parts if part.estimate is not None and not part.counted]
    if alone and changes:
        notes.append(
            f"The change counts {', '.join(changes[0].counted)}, which both sides faced alike. What this model alone "
            f"faced ({', '.join(alone)}) is in its own figure only."
        )
    elif contender.baselines and not changes:
        notes.append("No change is given: nothing was measured alike on this model and on the one it came from.")
    main = shell(
        attack="worst case per record over " + ", ".join(part.name for part in parts if part.estimate is not None),
        estimate=rate(found.robust),
        chosen=_radius_words(reader, attack),
        available=len(reader.suite.subject.data.evaluation_ids),
        changes=changes,
        flags=found.flags,
        notes=notes,
        parts=parts,
        curves=_epsilon_curves(found),
        who_is_hit=_who_is_hit(reader, found.result, found.robust),
    )
    rows = [with_evidence(reader, main, cell, found.result)]
    if contender.draws:
        rows.append(_without_draw(reader, contender, found.attack, label, setting))
    return rows


def threat_of(found: Measured, reader: Reader, contender: Contender) -> ThreatModel:
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
    return ThreatModel(
        access=access.value,
        knowledge=f"has {has}{parent}",
        budget=f"{norm} epsilon {found.attack.gate:.4g} of the input's range",
    )


def _notes(reader: Reader, contender: Contender, found: Measured) -> list[str]:
    notes = []
    candidate = reader.get(reader.suite.candidate_cell(contender))
    if candidate is not None and without_twin(reader, contender):
        notes.append(f"No white-box attack: {candidate.document['no_twin']}")
    n = len(found.robust)
    for part, count in found.summary["without_gradient"].items():
        notes.append(
            f"{part}: {count} of {n} records ({100 * count / n:.1f} %) gave it no gradient of their own and withstood "
            "it."
        )
    if contender.draws:
        notes.append("This row is the shipped draw, attacked through its own bytes: a stored draw is deterministic.")
    return notes


def _radius_words(reader: Reader, attack: Evasion) -> str | None:
    """How the epsilon was chosen, in two sentences; None where the plan names it."""
    if not attack.automatic:
        return None
    chosen = reader.get(radius_cell(attack))
    assert chosen is not None  # else nothing would have been measured
    radius, reference = chosen.document["radius"], reader.suite.lineup.contenders[0].name
    kept = kept_words(radius)
    how = {
        "ladder": "the largest of a fixed ladder at which",
        "bisected": "found between two rungs of a fixed ladder, where",
        "nearest": "the nearest there is to one half:",
    }[radius["how"]]
    probe = ", ".join(
        f"{number(float(epsilon), 2)}: {100 * share:.0f} %"
        for epsilon, share in sorted(radius["probe"].items(), key=lambda item: float(item[0]))
    )
    return (
        f"Epsilon {radius['epsilon']:.2g} was chosen by a quick probe: {how} {reference} keeps {kept}. Its robust "
        f"accuracy there, by epsilon: {probe}."
    )


def _replayed_part(replayed: Bools) -> Part:
    own = rate(~replayed)
    return Part(name=REPLAYED, estimate=own.estimate, low=own.low, high=own.high)


def _without_draw(
    reader: Reader, contender: Contender, attack: Evasion, label: str, setting: dict[str, str | float | int]
) -> Finding:
    cell = reader.suite.attack_cell(label, contender.name, "without-draw")
    result = reader.get(cell)
    words = "worst case for an attacker without the shipped draw (expectation over the other draws)"
    row = _shell(reader, contender, label, setting, NOTHING_RAN)
    if result is None:
        return row(detail="without-draw", attack=words, reason=reader.why(cell))
    found = Measured(result, attack, robust_at(result, attack.gate), [], {}, None)
    row = _shell(reader, contender, label, setting, threat_of(found, reader, contender))
    built = row(
        detail="without-draw",
        attack=words,
        estimate=rate(found.robust),
        flags=list(found.summary["union_flags"]),
        notes=["Not gated: whoever holds the shipped file holds the draw."],
        curves=_epsilon_curves(found),
        parts=[
            part_of(part, rate(~fooled), result, part)
            for part in found.summary["parts"]
            if (fooled := found.fooled(part)) is not None
        ],
    )
    return with_evidence(reader, built, cell, result)


def _shell(
    reader: Reader,
    contender: Contender,
    label: str,
    setting: dict[str, str | float | int],
    threat: ThreatModel,
) -> Callable[..., Finding]:
    return shell_of(reader, contender, label, "evasion", "robust_accuracy", "higher", threat, setting)


def _epsilon_curves(found: Measured) -> dict[str, list[Point]]:
    """By part and for the worst case: only where something ran."""
    clean = np.asarray(found.result.arrays["clean_correct"], dtype=bool)
    curves = {"worst case": [point(0.0, clean)]}
    for epsilon in found.summary["epsilons"]:
        at_gate = epsilon == found.attack.gate
        robust = found.robust if at_gate else robust_at(found.result, epsilon)
        if found.replayed is not None and epsilon > found.attack.gate:
            robust = robust & found.robust
        curves["worst case"].append(point(epsilon, robust))
        for part in found.summary["parts"]:
            fooled = found.result.arrays.get(f"fooled/{part}/{epsilon!r}")
            if fooled is not None:
                curves.setdefault(part, [point(0.0, clean)]).append(point(epsilon, ~fooled))
    return curves


def _who_is_hit(reader: Reader, result: Result, good: Bools) -> list[GroupEstimate]:
    """The estimate per class, and per group where the data has groups, of the attacked records; the worst first."""
    data, ids = reader.suite.subject.data, result.arrays["ids"]
    labels = data.non_members.y.numpy()[ids]
    masks = {name: labels == label for label, name in enumerate(data.class_names)}
    if data.groups is not None:
        groups = np.array(data.groups)[ids]
        masks |= {f"group {name}": groups == name for name in sorted(set(data.groups))}
    rows = [GroupEstimate(name=name, **rate(good[mask]).model_dump()) for name, mask in masks.items() if mask.any()]
    return sorted(rows, key=lambda row: (row.estimate, row.name))
