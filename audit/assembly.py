"""From evidence to findings: estimates with intervals, changes against the baseline, flags, notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..attacks.attack import Flag
from ..attacks.evasion.evasion import Evasion
from ..attacks.extraction.extraction import Extraction
from ..attacks.membership.membership import Membership
from ..targets.seeds import derive
from .cells import Result
from .findings import Estimate, Finding, Part, Point, ThreatModel
from .lineup import PLAIN, Contender
from .measures import FPR, Bools, auc, auc_change, point, rate, rate_change, roc, tpr, tpr_change
from .steps import AGREEMENT
from .suite import Suite
from .taxonomy import taxonomy


@dataclass(frozen=True)
class Reader:
    """The finished results of a suite; None where a cell did not finish or did not apply."""

    suite: Suite
    get: Callable[[str], Result | None]
    why: Callable[[str], str]  # the reason why `get` gave None
    evidence: Callable[[str], tuple[str, str]]  # path and digest of a cell's evidence
    command: str  # how this audit was started, up to --only


def baselines(contender: Contender) -> list[str]:
    """Names of the models a contender is compared with: its own parent, then the plain dense model."""
    names = [] if contender.recipe is None else [contender.parent.name]
    return names if contender.parent.name == PLAIN else [*names, PLAIN]


def findings_of(reader: Reader, contender: Contender) -> list[Finding]:
    """Every finding of one contender, measured or not (rule 9: none is silently missing)."""
    found: list[Finding] = []
    for attack, label in reader.suite.attacks:
        if isinstance(attack, Evasion):
            found += evasion(reader, contender, attack, label)
        elif isinstance(attack, Membership):
            found += membership(reader, contender, attack, label)
        elif isinstance(attack, Extraction):
            found += extraction(reader, contender, attack, label)
    return found


def evasion(reader: Reader, contender: Contender, attack: Evasion, label: str) -> list[Finding]:
    """Robust accuracy at the gate's epsilon, the worst case per record over all parts."""
    threat = ThreatModel(
        access="white-box",
        knowledge="has the shipped bytes (and so a differentiable twin), the dense model it came from, and its answers",
        budget=f"{'L-inf' if attack.norm == 'linf' else 'L2'} epsilon {attack.gate_epsilon:g} of the input's range",
    )
    setting: dict[str, str | float | int] = {"norm": attack.norm, "epsilon": attack.gate_epsilon}
    shell = _shell(reader, contender, label, "evasion", "robust_accuracy", "higher", threat, setting)
    cell = f"{label}/{contender.name}"
    result = reader.get(cell)
    if result is None:
        return [shell(reason=reader.why(cell), attack="worst case over all attacks")]
    robust = robust_at(result, attack.gate_epsilon)
    changes = []
    for name in baselines(contender):
        baseline = reader.get(f"{label}/{name}")
        if baseline is not None:
            changes.append(rate_change(robust, robust_at(baseline, attack.gate_epsilon), name))
    summary, parts = result.document["summary"], []
    for part in summary["parts"]:
        fooled = result.arrays.get(f"fooled/{part}/{attack.gate_epsilon:g}")
        own = None if fooled is None else rate(~fooled)
        parts.append(_part(part, own, result, part))
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
    if contender.draws:
        notes.append("This row is the shipped draw, attacked through its own bytes: a stored draw is deterministic.")
    main = shell(
        attack="worst case per record over " + ", ".join(summary["parts"]),
        estimate=rate(robust),
        changes=changes,
        gated=contender.recipe is not None,
        flags=flags,
        notes=notes,
        parts=parts,
        curves=_epsilon_curves(result, attack),
        who_is_hit=_who_is_hit(reader, result, robust),
    )
    found = [_with_evidence(reader, main, cell, result)]
    if contender.draws:
        found.append(_without_draw(reader, contender, attack, label, shell))
    return found


def _without_draw(
    reader: Reader, contender: Contender, attack: Evasion, label: str, shell: Callable[..., Finding]
) -> Finding:
    cell = f"{label}/{contender.name}/without-draw"
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
            _part(part, rate(~result.arrays[f"fooled/{part}/{attack.gate_epsilon:g}"]), result, part)
            for part in result.document["summary"]["parts"]
            if f"fooled/{part}/{attack.gate_epsilon:g}" in result.arrays
        ],
    )
    return _with_evidence(reader, row, cell, result)


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
    """The estimate per class of the attacked records, the worst first."""
    data = reader.suite.subject.data
    labels = data.non_members.y.numpy()[result.arrays["ids"]]
    rows: list[dict[str, str | float | int]] = []
    for label, name in enumerate(data.class_names):
        mask = labels == label
        if mask.any():
            own = rate(good[mask])
            rows.append({"name": name, "estimate": own.estimate, "low": own.low, "high": own.high, "n": own.n})
    return sorted(rows, key=lambda row: (row["estimate"], row["name"]))


def membership(reader: Reader, contender: Contender, attack: Membership, label: str) -> list[Finding]:
    """TPR at 1 % FPR and AUC of the attack that was best on pseudo-targets."""
    threat = ThreatModel(
        access="scores",
        knowledge="knows the training, the recipe and the members that are not attacked; trains shadow models",
        budget=f"{reader.suite.shadow_count(contender.parent, contender.recipe)} shadow models",
    )
    shell = _shell(reader, contender, label, "membership", "tpr_at_1_percent_fpr", "lower", threat, {"fpr": FPR})
    auc_shell = _shell(reader, contender, label, "membership", "auc", "lower", threat, {})
    cell = f"{label}/{contender.name}"
    result = reader.get(cell)
    if result is None:
        reason = reader.why(cell) if reader.suite.has(cell) else "no training records: membership cannot be audited"
        return [shell(attack="membership", reason=reason), auc_shell(detail="auc", attack="membership", reason=reason)]
    headline = result.document["summary"]["headline"]
    is_member = np.asarray(result.arrays["is_member"], dtype=bool)
    scores = result.arrays[f"score/{headline}"]
    seed = derive(reader.suite.plan.seed, "bootstrap")
    measured = tpr(scores, is_member)
    flags, notes = _membership_caveats(result, contender, is_member)
    tpr_parts, auc_parts = [], []
    for name in sorted(array.removeprefix("score/") for array in result.arrays if array.startswith("score/")):
        own = result.arrays[f"score/{name}"]
        tpr_parts.append(_part(name, tpr(own, is_member), result, name, headline=name == headline))
        auc_parts.append(_part(name, auc(own, is_member), result, name, headline=name == headline))
    tpr_changes, auc_changes = [], []
    for name in baselines(contender):
        other = reader.get(f"{label}/{name}")
        if other is not None:
            theirs = other.arrays[f"score/{other.document['summary']['headline']}"]
            if measured is not None:
                tpr_changes.append(tpr_change(scores, theirs, is_member, name, seed))
            auc_changes.append(auc_change(scores, theirs, is_member, name))
    words = f"{headline}, chosen on shadows as pseudo-targets"
    common: dict[str, Any] = {"attack": words, "gated": contender.recipe is not None, "flags": flags, "notes": notes}
    curves = {"roc": roc(scores, is_member), "blind": roc(result.arrays["blind"], is_member)}
    few = f"{int((~is_member).sum())} non-members are too few for a false positive rate of 1 %"
    tpr_row = (
        shell(reason=few, **common)
        if measured is None
        else shell(estimate=measured, changes=tpr_changes, parts=tpr_parts, curves=curves, **common)
    )
    auc_row = auc_shell(
        detail="auc",
        estimate=auc(scores, is_member),
        changes=auc_changes,
        parts=auc_parts,
        **common,
    )
    return [_with_evidence(reader, row, cell, result) for row in (tpr_row, auc_row)]


def _membership_caveats(result: Result, contender: Contender, is_member: Bools) -> tuple[list[str], list[str]]:
    flags = sorted({flag for flags in result.document["flags"].values() for flag in flags})
    notes = []
    blind = auc(result.arrays["blind"], is_member)
    if not blind.low <= 0.5 <= blind.high:
        flags.append(Flag.DISTRIBUTION_SHIFT.value)
        notes.append(
            f"Not attributable to membership: a classifier that never saw the model tells the two sets apart "
            f"(AUC {blind.estimate:.3f} [{blind.low:.3f}, {blind.high:.3f}])."
        )
    if contender.touches_members_after_dp:
        flags.append(Flag.EPSILON_VOID.value)
        notes.append("Epsilon: void. The compression looked at training records after DP-SGD.")
    summary = result.document["summary"]
    own = summary["pseudo_targets"].get(summary["headline"])
    if own is not None and own["tpr_mean"] is not None:
        notes.append(
            "Over the population's own shadows as targets (the procedure, not this model; never gated): "
            f"TPR at 1 % FPR {100 * own['tpr_mean']:.1f} % on average, standard deviation {100 * own['tpr_sd']:.1f}, "
            f"AUC {own['auc_mean']:.3f}, {own['targets']} targets."
        )
    return flags, notes


def extraction(reader: Reader, contender: Contender, attack: Extraction, label: str) -> list[Finding]:
    """Fidelity of the copy at the largest budget of queries; accuracy and transfer of the copy beside it."""
    largest = max(attack.budgets)
    threat = ThreatModel(
        access="scores",
        knowledge="owns records of the same kind and knows the architecture family; sees answers only",
        budget=f"{largest} queries",
    )
    setting: dict[str, str | float | int] = {"queries": largest}
    shell = _shell(reader, contender, label, "extraction", "fidelity", "lower", threat, setting)
    cell = f"{label}/{contender.name}"
    result = reader.get(cell)
    if result is None:
        return [shell(attack="surrogate trained on answers", reason=reader.why(cell))]
    copies = [copy for copy in result.document["summary"]["copies"] if "/" in copy]
    headline = f"scores/{largest}" if f"scores/{largest}" in copies else copies[-1]
    agrees = np.asarray(result.arrays[f"agrees/{headline}"], dtype=bool)
    curves: dict[str, list[Point]] = {}
    for copy in copies:
        answers, _, budget = copy.partition("/")
        curves.setdefault(answers, []).append(point(float(budget), result.arrays[f"agrees/{copy}"]))
        curves.setdefault(f"{answers}: accuracy", []).append(
            point(float(budget), result.arrays[f"copy_correct/{copy}"])
        )
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
    alone = result.document["summary"].get("fidelity without queries")
    if alone is not None:
        notes.append(f"Without any query, the attacker's own labels give a copy of fidelity {100 * alone:.1f} %.")
    changes = []
    for name in baselines(contender):
        other = reader.get(f"{label}/{name}")
        if other is not None and f"agrees/{headline}" in other.arrays:
            changes.append(rate_change(agrees, np.asarray(other.arrays[f"agrees/{headline}"], dtype=bool), name))
    row = shell(
        attack=f"surrogate trained on {largest} answers ({headline.partition('/')[0]})",
        estimate=rate(agrees),
        changes=changes,
        reason="not gated: no built-in limit on extraction",
        notes=notes,
        curves=curves,
        parts=[
            _part(copy, rate(np.asarray(result.arrays[f"agrees/{copy}"], dtype=bool)), result, copy, copy == headline)
            for copy in copies
        ],
    )
    return [_with_evidence(reader, row, cell, result)]


# -- pieces -----------------------------------------------------------------------------------------------------------


def _shell(
    reader: Reader,
    contender: Contender,
    label: str,
    risk: str,
    metric: str,
    better: str,
    threat: ThreatModel,
    setting: dict[str, str | float | int],
) -> Callable[..., Finding]:
    """A finding with everything filled in that does not depend on whether it was measured."""

    def build(detail: str = "", **fields: Any) -> Finding:
        identifier = f"{contender.name}/{label}" + (f"/{detail}" if detail else "")
        if fields.get("estimate") is None:
            fields = {**fields, "verdict": "not-measured", "gated": contender.recipe is not None and not detail}
        return Finding.model_validate(
            {
                "id": identifier,
                "candidate": contender.name,
                "risk": risk,
                "metric": metric,
                "better": better,
                "setting": setting,
                "threat_model": threat,
                "taxonomy": taxonomy(risk),
                "reproduce": f"{reader.command} --only {identifier}",
                "estimate": None,
                **fields,
            }
        )

    return build


def _with_evidence(reader: Reader, finding: Finding, cell: str, result: Result) -> Finding:
    path, digest = reader.evidence(cell)
    ledger = result.document["ledger"]
    return finding.model_copy(
        update={
            "evidence": path,
            "evidence_digest": digest,
            "queries": ledger["queries"],
            "forwards": ledger["forwards"],
            "backwards": ledger["backwards"],
        }
    )


def _part(name: str, own: Estimate | None, result: Result, key: str, headline: bool = False) -> Part:
    return Part(
        name=name,
        estimate=None if own is None else own.estimate,
        low=None if own is None else own.low,
        high=None if own is None else own.high,
        flags=result.document["flags"].get(key, []),
        skipped=result.document["skipped"].get(key),
        headline=headline,
    )
