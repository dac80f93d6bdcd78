"""Evidence of evasion -> findings: robust accuracy at the gate's epsilon, worst case per record over all parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..attacks.attack import Flag
from ..attacks.evasion.evasion import Evasion
from .cells import Result
from .findings import Finding, Part, Point, ThreatModel
from .lineup import Contender
from .measures import Bools, point, rate, rate_change
from .reader import Reader, part_of, shell_of, with_evidence
from .steps import AGREEMENT


def evasion(reader: Reader, contender: Contender, attack: Evasion, label: str) -> list[Finding]:
    """Robust accuracy at the gate's epsilon, the worst case per record over all parts."""
    cell = reader.suite.attack_cell(label, contender.name)
    result = reader.get(cell)
    candidate = reader.get(reader.suite.candidate_cell(contender))
    blind = candidate is not None and candidate.document["certificate"] is None
    has = "the file's answers" if blind else "the shipped bytes (and so a differentiable twin), their answers"
    threat = ThreatModel(
        access="scores" if blind else "white-box",
        knowledge=f"has {has}" + (" and the dense model it came from" if contender.parent is not None else ""),
        budget=f"{'L-inf' if attack.norm == 'linf' else 'L2'} epsilon {attack.gate_epsilon:g} of the input's range",
    )
    setting: dict[str, str | float | int] = {"norm": attack.norm, "epsilon": attack.gate_epsilon}
    shell = shell_of(reader, contender, label, "evasion", "robust_accuracy", "higher", threat, setting)
    if result is None:
        return [shell(reason=reader.why(cell), attack="worst case over all attacks")]
    robust = robust_at(result, attack.gate_epsilon)
    changes = []
    for name in contender.baselines:
        baseline = reader.get(reader.suite.attack_cell(label, name))
        if baseline is not None:
            changes.append(rate_change(robust, robust_at(baseline, attack.gate_epsilon), name))
    summary, parts = result.document["summary"], []
    for part in summary["parts"]:
        fooled = result.arrays.get(f"fooled/{part}/{attack.gate_epsilon:g}")
        own = None if fooled is None else rate(~fooled)
        parts.append(part_of(part, own, result, part))
    parts += [
        Part(name=name, estimate=None, skipped=reason)
        for name, reason in result.document["skipped"].items()
        if name not in summary["parts"]
    ]
    flags = list(summary["union_flags"])
    certificate = result.document.get("certificate")
    if (
        certificate is not None
        and certificate["overall"]["label_agreement"] < AGREEMENT
        and Flag.TWIN_DISAGREES not in flags
    ):
        flags.append(Flag.TWIN_DISAGREES.value)
    notes = []
    if candidate is not None and blind:
        flags.append(Flag.NO_WHITE_BOX.value)
        notes.append(f"No white-box attack: {candidate.document['no_twin']}")
    if contender.draws:
        notes.append("This row is the shipped draw, attacked through its own bytes: a stored draw is deterministic.")
    main = shell(
        attack="worst case per record over " + ", ".join(summary["parts"]),
        estimate=rate(robust),
        changes=changes,
        flags=flags,
        notes=notes,
        parts=parts,
        curves=_epsilon_curves(result, attack),
        who_is_hit=_who_is_hit(reader, result, robust),
    )
    found = [with_evidence(reader, main, cell, result)]
    if contender.draws:
        found.append(_without_draw(reader, contender, attack, label, shell))
    return found


def _without_draw(
    reader: Reader, contender: Contender, attack: Evasion, label: str, shell: Callable[..., Finding]
) -> Finding:
    cell = reader.suite.attack_cell(label, contender.name, "without-draw")
    result = reader.get(cell)
    words = "worst case for an attacker without the shipped draw (expectation over the other draws)"
    if result is None:
        return shell(detail="without-draw", attack=words, reason=reader.why(cell))
    row = shell(
        detail="without-draw",
        attack=words,
        estimate=rate(robust_at(result, attack.gate_epsilon)),
        flags=list(result.document["summary"]["union_flags"]),
        notes=["Not gated: whoever holds the shipped file holds the draw."],
        curves=_epsilon_curves(result, attack),
        parts=[
            part_of(part, rate(~result.arrays[f"fooled/{part}/{attack.gate_epsilon:g}"]), result, part)
            for part in result.document["summary"]["parts"]
            if f"fooled/{part}/{attack.gate_epsilon:g}" in result.arrays
        ],
    )
    return with_evidence(reader, row, cell, result)


def robust_at(result: Result, epsilon: float) -> Bools:
    """bool [n]: the deployed model withstood every attack at this epsilon."""
    return ~np.asarray(result.arrays[f"worst/{epsilon:g}"], dtype=bool)


def _epsilon_curves(result: Result, attack: Evasion) -> dict[str, list[Point]]:
    clean = np.asarray(result.arrays["clean_correct"], dtype=bool)
    curves = {"worst case": [point(0.0, clean)]}
    for epsilon in attack.epsilons:
        curves["worst case"].append(point(epsilon, robust_at(result, epsilon)))
        for part in result.document["summary"]["parts"]:
            fooled = result.arrays.get(f"fooled/{part}/{epsilon:g}")
            if fooled is not None:
                curves.setdefault(part, [point(0.0, clean)]).append(point(epsilon, ~fooled))
    return curves


def _who_is_hit(reader: Reader, result: Result, good: Bools) -> list[dict[str, str | float | int]]:
    """The estimate per class, and per group where the data has groups, of the attacked records; the worst first."""
    data, ids = reader.suite.subject.data, result.arrays["ids"]
    labels = data.non_members.y.numpy()[ids]
    masks = {name: labels == label for label, name in enumerate(data.class_names)}
    if data.groups is not None:
        groups = np.array(data.groups)[ids]
        masks |= {f"group {name}": groups == name for name in sorted(set(data.groups))}
    rows: list[dict[str, str | float | int]] = []
    for name, mask in masks.items():
        if mask.any():
            own = rate(good[mask])
            rows.append({"name": name, "estimate": own.estimate, "low": own.low, "high": own.high, "n": own.n})
    return sorted(rows, key=lambda row: (row["estimate"], row["name"]))
