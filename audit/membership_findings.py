"""Evidence of membership inference -> findings: TPR at 1 % FPR and AUC, each of the attack chosen on shadows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..attacks.attack import Flag
from ..attacks.membership.membership import Membership
from ..targets.seeds import derive
from . import statistics
from .cells import Result
from .findings import Finding, ThreatModel
from .lineup import Contender
from .measures import FPR, Bools, auc, auc_change, roc, tpr, tpr_change
from .reader import NOTHING_RAN, Reader, candidate_flags, part_of, shell_of, with_evidence

NO_MEMBERS = "the data has no training records (x_train, y_train) to tell apart from others"


def membership(reader: Reader, contender: Contender, attack: Membership, label: str) -> list[Finding]:
    """TPR at 1 % FPR and AUC of the attack that was best on pseudo-targets."""
    cell = reader.suite.attack_cell(label, contender.name)
    result = reader.get(cell)
    threat = NOTHING_RAN if result is None else _threat_of(reader, contender)
    shell = shell_of(reader, contender, label, "membership", "tpr_at_1_percent_fpr", "lower", threat, {"fpr": FPR})
    auc_shell = shell_of(reader, contender, label, "membership", "auc", "lower", threat, {})
    if result is None:
        reason = reader.why(cell) if reader.suite.has(cell) else NO_MEMBERS
        return [shell(attack="membership", reason=reason), auc_shell(detail="auc", attack="membership", reason=reason)]
    summary = result.document["summary"]
    is_member = np.asarray(result.arrays["is_member"], dtype=bool)
    seed = derive(reader.suite.plan.seed, "bootstrap")
    flags, notes = _membership_caveats(reader, result, contender, is_member)
    by_tpr, by_auc = summary["headline"], summary["headline_auc"]
    scores, auc_scores = result.arrays[f"score/{by_tpr}"], result.arrays[f"score/{by_auc}"]
    measured = tpr(scores, is_member)
    tpr_parts, auc_parts = [], []
    for name in sorted(array.removeprefix("score/") for array in result.arrays if array.startswith("score/")):
        own = result.arrays[f"score/{name}"]
        tpr_parts.append(part_of(name, tpr(own, is_member), result, name, headline=name == by_tpr))
        auc_parts.append(part_of(name, auc(own, is_member), result, name, headline=name == by_auc))
    tpr_changes, auc_changes = [], []
    for name in contender.baselines:
        parent = reader.suite.lineup.contender(name)
        other = _baseline(reader, contender, label, name, by_tpr)
        if other is not None and measured is not None:
            change = tpr_change(scores, other[0], is_member, name, seed)
            tpr_changes.append(change.model_copy(update={"flags": _flags_of(reader, other[1], parent)}))
        other = _baseline(reader, contender, label, name, by_auc)
        if other is not None:
            change = auc_change(auc_scores, other[0], is_member, name)
            auc_changes.append(change.model_copy(update={"flags": _flags_of(reader, other[1], parent)}))
    common: dict[str, Any] = {"flags": flags}
    curves = {"roc": roc(scores, is_member), "blind": roc(result.arrays["blind"], is_member)}
    few = f"{int((~is_member).sum())} non-members are too few for a false positive rate of 1 %"
    words = "{}, named beforehand" if contender.parent is None else "{}, chosen on shadows as pseudo-targets"
    tpr_row = shell(
        attack=words.format(by_tpr),
        estimate=measured,
        reason=few if measured is None else None,
        changes=tpr_changes,
        parts=tpr_parts,
        curves=curves,
        notes=[*notes, *_procedure_note(summary, by_tpr, "tpr", "TPR at 1 % FPR")],
        **common,
    )
    auc_row = auc_shell(
        detail="auc",
        attack=words.format(by_auc),
        estimate=auc(auc_scores, is_member),
        changes=auc_changes,
        parts=auc_parts,
        notes=[*notes, *_procedure_note(summary, by_auc, "auc", "AUC")],
        **common,
    )
    return [with_evidence(reader, row, cell, result) for row in (tpr_row, auc_row)]


def _threat_of(reader: Reader, contender: Contender) -> ThreatModel:
    """The attacker who asked this model: with shadows of its training where that is known."""
    if contender.parent is None:
        knowledge, budget = "owns records of the same kind that were not trained on", "no shadow model"
    else:
        knowledge = "knows the training, the recipe and the members that are not attacked; trains shadow models"
        budget = f"{reader.suite.shadow_counts(contender)[0]} shadow models"
    return ThreatModel(access="scores", knowledge=knowledge, budget=budget)


def _baseline(reader: Reader, contender: Contender, label: str, name: str, attack: str) -> tuple[Any, Result] | None:
    """Scores of the same attack on an uncompressed baseline, with as many shadows as it has on the candidate.

    Like for like: another attack, or four times the shadows, would pass for an effect of the compression.
    """
    kind, _, sort = attack.partition("/")
    own, uncompressed = reader.suite.shadow_counts(contender)
    result = reader.get(reader.suite.membership_cell(label, name, uncompressed if sort == "dense" else own))
    return None if result is None else (result.arrays[f"score/{kind}" + ("/own" if sort else "")], result)


def _flags_of(reader: Reader, result: Result, contender: Contender) -> list[str]:
    """The trust flags of the attack on one model, and of the model itself."""
    return sorted(
        {flag for raised in result.document["flags"].values() for flag in raised} | candidate_flags(reader, contender)
    )


def _procedure_note(summary: dict[str, Any], attack: str, metric: str, words: str) -> list[str]:
    """The leave-pair-out figure: the training procedure's, on a row of its own and never gated (rule 5)."""
    own = summary["pseudo_targets"].get(attack)
    if own is None or own[f"{metric}_mean"] is None:
        return []
    mean, spread = own[f"{metric}_mean"], own[f"{metric}_sd"]
    figures = (
        f"{100 * mean:.1f} % on average, sd {100 * spread:.1f}" if metric == "tpr" else f"{mean:.3f}, sd {spread:.3f}"
    )
    return [
        f"The training procedure, not this model (shadows as targets, never gated): {words} {figures}, "
        f"{own['targets']} targets."
    ]


def _membership_caveats(
    reader: Reader, result: Result, contender: Contender, is_member: Bools
) -> tuple[list[str], list[str]]:
    flags = set(_flags_of(reader, result, contender))
    notes: list[str] = []
    model = reader.suite.subject.model
    if contender.parent is not None:
        notes += reader.suite.subject.notes
        if model is not None and model.shadows_differ:
            flags.add(Flag.SHADOWS_DIFFER.value)
        if contender.file is not None and not contender.is_dense and contender.recipe is None:
            flags.add(Flag.SHADOWS_DIFFER.value)
            notes.append(
                "How this file was compressed is not declared, so its shadow models are uncompressed: membership may "
                "be underestimated. Name its recipe."
            )
    # A 99 % interval: DeLong's takes the records for independent, and cross-validation ties their scores together
    # (on 100 splits at random a 95 % interval excluded .5 in 15, a 99 % one in about 3).
    blind = statistics.auc(result.arrays["blind"], is_member, level=0.99)
    if blind.low > 0.5:
        flags.add(Flag.DISTRIBUTION_SHIFT.value)
        notes.append(
            f"Not attributable to membership: a classifier that never saw the model tells the two sets apart "
            f"(AUC {blind.estimate:.3f}, 99 % interval [{blind.low:.3f}, {blind.high:.3f}])."
        )
    if contender.touches_members_after_dp:
        notes.append("Epsilon: void. The compression looked at training records after DP-SGD.")
    return sorted(flags), notes
