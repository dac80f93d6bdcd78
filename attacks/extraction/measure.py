"""Evidence of extraction -> fidelity of the copy at the largest budget, with its accuracy and transfer beside it."""

from __future__ import annotations

import numpy as np

from ..access import Access
from ..measurement import Auc, Bools, Comparison, MeasuredPart, Measurement, Rate, ThreatModel
from ..preparation import Ran, Results
from ..statistics.rates import percent
from .risk import FIDELITY


def measure_extraction(results: Results, most: int, transfer_epsilon: float) -> list[Measurement]:
    """Fidelity after `most` queries, of the attacker who sees scores where there is one."""
    model = results.model.name
    evidence = results.evidence(Ran(model))
    copies = [] if evidence is None else [copy for copy in evidence.summary["copies"] if "/" in copy]
    headline = f"scores/{most}" if f"scores/{most}" in copies or not copies else copies[-1]
    answers, _, queries = headline.partition("/")
    setting: dict[str, str | float | int] = {"queries": int(queries)}
    if evidence is None:
        why = results.why(Ran(model))
        return [Measurement(FIDELITY, "surrogate trained on answers", None, reason=why, setting=setting)]

    def told(name: str) -> Bools:
        return np.asarray(evidence.arrays[name], dtype=bool)

    curves: dict[str, list[tuple[float, Rate]] | Auc] = {}
    for copy in copies:
        sort, _, budget = copy.partition("/")
        for series, array in ((sort, f"agrees/{copy}"), (f"{sort}: accuracy", f"copy_correct/{copy}")):
            line = curves.setdefault(series, [])
            assert isinstance(line, list)  # no ROC here
            line.append((float(budget), Rate(told(array))))
    notes = [
        f"Adversarial examples made on the {copy.replace('/', ' copy of ')} queries fool the deployed model on "
        f"{percent(told(f'transfer/{copy}'))} of {len(told(f'transfer/{copy}'))} records "
        f"(L-inf epsilon {transfer_epsilon:g}; clean errors count)."
        for copy in copies
        if f"transfer/{copy}" in evidence.arrays
    ]
    alone = told("agrees/without-queries")
    notes.append(
        f"Without any query, the attacker's own labels give a copy of fidelity {percent(alone)}, n = {len(alone)}."
    )
    comparisons = []
    for name in results.model.baselines:
        other = results.evidence(Ran(name))
        if other is not None and f"agrees/{headline}" in other.arrays:
            theirs = Rate(np.asarray(other.arrays[f"agrees/{headline}"], dtype=bool))
            flags = tuple(sorted(results.flags(name)))
            comparisons.append(Comparison(name, Rate(told(f"agrees/{headline}")), theirs, flags=flags))
    return [
        Measurement(
            FIDELITY,
            f"surrogate trained on {queries} answers ({answers})",
            Rate(told(f"agrees/{headline}")),
            ThreatModel(
                Access(answers),
                "owns records of the same kind and knows the architecture family; sees answers only",
                f"{queries} queries",
            ),
            reason="not gated: no built-in limit on extraction",
            setting=setting,
            comparisons=tuple(comparisons),
            flags=tuple(sorted(results.flags(model))),
            notes=tuple(notes),
            curves=curves,
            parts=tuple(
                MeasuredPart(
                    copy,
                    Rate(told(f"agrees/{copy}")),
                    tuple(evidence.flags.get(copy, ())),
                    evidence.skipped.get(copy),
                    headline=copy == headline,
                )
                for copy in copies
            ),
        )
    ]
