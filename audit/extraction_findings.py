"""Evidence of extraction -> findings: fidelity of the copy at the largest budget, with its accuracy and transfer."""

from __future__ import annotations

import numpy as np

from ..attacks.extraction.extraction import Extraction
from .findings import Finding, Point, ThreatModel
from .lineup import Contender
from .measures import point, rate, rate_change
from .reader import NOTHING_RAN, Reader, candidate_flags, part_of, shell_of, with_evidence


def extraction(reader: Reader, contender: Contender, attack: Extraction, label: str) -> list[Finding]:
    """Fidelity of the copy at the largest budget of queries; accuracy and transfer of the copy beside it."""
    cell = reader.suite.attack_cell(label, contender.name)
    result = reader.get(cell)
    copies = [] if result is None else [copy for copy in result.document["summary"]["copies"] if "/" in copy]
    most = max(attack.budgets)
    headline = f"scores/{most}" if f"scores/{most}" in copies or not copies else copies[-1]
    answers, _, queries = headline.partition("/")
    threat = NOTHING_RAN
    if result is not None:
        threat = ThreatModel(
            access=answers,
            knowledge="owns records of the same kind and knows the architecture family; sees answers only",
            budget=f"{queries} queries",
        )
    setting: dict[str, str | float | int] = {"queries": int(queries)}
    shell = shell_of(reader, contender, label, "extraction", "fidelity", "lower", threat, setting)
    if result is None:
        return [shell(attack="surrogate trained on answers", reason=reader.why(cell))]
    agrees = np.asarray(result.arrays[f"agrees/{headline}"], dtype=bool)
    curves: dict[str, list[Point]] = {}
    for copy in copies:
        sort, _, budget = copy.partition("/")
        curves.setdefault(sort, []).append(point(float(budget), result.arrays[f"agrees/{copy}"]))
        curves.setdefault(f"{sort}: accuracy", []).append(point(float(budget), result.arrays[f"copy_correct/{copy}"]))
    notes = []
    for copy in copies:
        fooled = result.arrays.get(f"transfer/{copy}")
        if fooled is not None:
            hit = rate(np.asarray(fooled, dtype=bool))
            notes.append(
                f"Adversarial examples made on the {copy.replace('/', ' copy of ')} queries fool the deployed model on "
                f"{100 * hit.estimate:.1f} % [{100 * hit.low:.1f}, {100 * hit.high:.1f}] of {hit.n} records "
                f"(L-inf epsilon {attack.transfer_epsilon:g}; clean errors count)."
            )
    alone = rate(np.asarray(result.arrays["agrees/without-queries"], dtype=bool))
    notes.append(
        f"Without any query, the attacker's own labels give a copy of fidelity {100 * alone.estimate:.1f} % "
        f"[{100 * alone.low:.1f}, {100 * alone.high:.1f}], n = {alone.n}."
    )
    changes = []
    for name in contender.baselines:
        other = reader.get(reader.suite.attack_cell(label, name))
        if other is not None and f"agrees/{headline}" in other.arrays:
            change = rate_change(agrees, np.asarray(other.arrays[f"agrees/{headline}"], dtype=bool), name)
            flags = candidate_flags(reader, reader.suite.lineup.contender(name))
            changes.append(change.model_copy(update={"flags": sorted(flags)}))
    row = shell(
        attack=f"surrogate trained on {queries} answers ({answers})",
        estimate=rate(agrees),
        changes=changes,
        flags=sorted(candidate_flags(reader, contender)),
        reason="not gated: no built-in limit on extraction",
        notes=notes,
        curves=curves,
        parts=[
            part_of(copy, rate(np.asarray(result.arrays[f"agrees/{copy}"], dtype=bool)), result, copy, copy == headline)
            for copy in copies
        ],
    )
    return [with_evidence(reader, row, cell, result)]
