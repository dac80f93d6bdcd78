"""From cells to the row of one candidate: accuracy, size, certificate, what its defense promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..attacks.evasion.evasion import Evasion
from .cells import Result
from .evasion_comparison import resolve_radius, robust_at
from .findings import Candidate, Certificate, Change, Estimate, Footprint, Kernels, Lineage, Runtime
from .lineup import PLAIN, Contender
from .measures import mean, mean_change, rate, rate_change
from .reader import Reader, candidate_flags


def candidate_row(reader: Reader, contender: Contender) -> Candidate | None:
    """None when the candidate could not be made (its reason is a row of its own)."""
    suite = reader.suite
    result = reader.get(suite.candidate_cell(contender))
    if result is None:
        return None
    changes = {}
    for name in contender.baselines:
        other = reader.get(suite.candidate_cell(suite.lineup.contender(name)))
        if other is not None:
            flags = sorted(candidate_flags(reader, suite.lineup.contender(name)))
            changes[name] = _quality_change(result, other, name).model_copy(update={"flags": flags})
    weights = dict(result.document["footprint"])
    plain = reader.get(suite.candidate_cell(suite.lineup.contender(PLAIN))) if suite.lineup.dense else None
    own = weights["payload_bytes"]
    ratio = own if plain is None else plain.document["footprint"]["payload_bytes"]
    recipe, parent = contender.recipe, contender.parent
    statement = _statement(reader, contender)
    return Candidate(
        name=contender.name,
        role="dense" if contender.is_dense else "control" if contender.control else "candidate",
        technique=_technique(contender),
        recipe=None if recipe is None else recipe.model_dump(mode="json"),
        recipe_words=_words(contender),
        parent=None if parent is None or contender.is_dense else parent.name,
        defense=None if contender.defense is None else contender.defense.kind,
        defense_words=_defense_words(contender, statement),
        statement=statement,
        verdict="not-gated",
        **_quality(result),
        quality_change=None if parent is None or contender.is_dense else changes.get(parent.name),
        quality_change_dense=None if parent is None or parent.name == PLAIN else changes.get(PLAIN),
        disagreement=_disagreement(reader, contender, result),
        footprint=Footprint.model_validate({**weights, "ratio": ratio / own}),
        certificate=_certificate(reader, contender, result),
        kernels=None if result.document["kernels"] is None else Kernels.model_validate(result.document["kernels"]),
        file=None if contender.file is None else Path(contender.file.name).name,
        assumed=[
            *([] if contender.file is None else contender.file.notes),
            *result.document.get("notes", []),
            *filter(None, [result.document.get("varies")]),
        ],
        lineage=_lineage(reader, contender),
        runtimes=[
            Runtime(name=label, **found.document)
            for _, label in suite.runtimes
            if (found := reader.get(suite.runtime_cell(contender, label))) is not None
        ],
        flags=sorted(candidate_flags(reader, contender)),
        digest=result.document["digest"],
        draws=_draws(reader, contender, result),
    )


def _quality(result: Result) -> dict[str, Estimate]:
    """The accuracy of a classifier, or the mean squared error of a model of values."""
    if "evidence/error" in result.arrays:
        return {"mean_squared_error": mean(result.arrays["evidence/error"])}
    return {"accuracy": rate(result.arrays["evidence/correct"])}


def _quality_change(result: Result, other: Result, name: str) -> Change:
    """On the same records, paired."""
    if "evidence/error" in result.arrays:
        return mean_change(result.arrays["evidence/error"], other.arrays["evidence/error"], name)
    return rate_change(result.arrays["evidence/correct"], other.arrays["evidence/correct"], name)


def _technique(contender: Contender) -> str:
    if contender.is_dense:
        return "dense"
    if contender.file is not None or contender.recipe is None:
        return "file"
    return contender.recipe.kind


def _words(contender: Contender) -> str:
    if contender.file is not None:
        declared = f", declared as {contender.recipe.words}" if contender.recipe is not None else ""
        return f"finished {contender.file.kind.upper()} file{declared}"
    return "uncompressed" if contender.recipe is None else contender.recipe.words


def _disagreement(reader: Reader, contender: Contender, result: Result) -> Estimate | None:
    """The share of evaluation records that change their label, whether that is for the better or the worse."""
    if contender.parent is None or contender.is_dense:
        return None
    parent = reader.get(reader.suite.candidate_cell(reader.suite.lineup.contender(contender.parent.name)))
    if parent is None or "evidence/predicted" not in result.arrays:
        return None
    return rate(result.arrays["evidence/predicted"] != parent.arrays["evidence/predicted"])


def _lineage(reader: Reader, contender: Contender) -> Lineage | None:
    cell = reader.suite.lineage_cell(contender)
    found = reader.get(cell) if reader.suite.has(cell) else None
    return None if found is None else Lineage.model_validate(found.document)


def _statement(reader: Reader, contender: Contender) -> dict[str, Any]:
    """What the parent's training defense promises; void where compression looked at members after DP-SGD."""
    result = None if contender.parent is None else reader.get(f"train/{contender.parent.name}")
    statement = {} if result is None else dict(result.document["statement"])
    if contender.touches_members_after_dp:
        statement["epsilon"] = "void"
        statement["why"] = "the compression looked at training records after DP-SGD"
    return statement


def _defense_words(contender: Contender, statement: dict[str, Any]) -> str | None:
    if contender.defense is None:
        return None
    if "epsilon" not in statement:
        return contender.defense.kind.replace("-", " ")
    if statement["epsilon"] == "void":
        return "DP-SGD, epsilon: void"
    return (
        f"DP-SGD, epsilon {statement['epsilon']:.2f} at delta {statement['delta']:.1e} "
        f"(sampling rate {statement['sampling_rate']:.3f}, {statement['steps']} steps, PRV accountant)"
    )


def _certificate(reader: Reader, contender: Contender, result: Result) -> Certificate | None:
    """Over clean, random and, where evasion ran, adversarial inputs; None where there is no twin."""
    if result.document["certificate"] is None:
        return None
    kinds = dict(result.document["certificate"]["kinds"])
    for attack, label in reader.suite.attacks:
        cell = reader.suite.attack_cell(label, contender.name)
        found = reader.get(cell) if isinstance(attack, Evasion) else None
        if found is not None and "certificate" in found.document:
            kinds |= found.document["certificate"]["kinds"]
    n = sum(kind["n"] for kind in kinds.values())
    return Certificate(
        inputs=", ".join(kinds),
        n=n,
        label_agreement=sum(kind["n"] * kind["label_agreement"] for kind in kinds.values()) / n,
        max_logit_difference=max(kind["max_logit_difference"] for kind in kinds.values()),
        logit_difference_99=max(kind["logit_difference_99"] for kind in kinds.values()),
    )


def _draws(reader: Reader, contender: Contender, shipped: Result) -> list[dict[str, float]]:
    """Accuracy and robust accuracy of every draw of a random recipe; the shipped one first."""
    if not contender.draws:
        return []
    attack, label = next((pair for pair in reader.suite.attacks if isinstance(pair[0], Evasion)), (None, ""))
    rows = []
    for draw in range(len(contender.draws) + 1):
        result = shipped if draw == 0 else reader.get(reader.suite.candidate_cell(contender, draw))
        if result is None:
            continue
        row = {"draw": float(draw), **_figures("accuracy", result.arrays["evidence/correct"])}
        found = reader.get(
            reader.suite.attack_cell(label, contender.name, f"draw-{draw}")
        )  # one attack for all draws: gradients at the gate
        resolved = resolve_radius(reader, attack) if isinstance(attack, Evasion) else None
        if resolved is not None and found is not None:
            row |= _figures("robust_accuracy", robust_at(found, resolved.gate))
        rows.append(row)
    return rows


def _figures(name: str, successes: Any) -> dict[str, float]:
    """A rate with its interval and n, flat."""
    own = rate(successes)
    return {name: own.estimate, f"{name}_low": own.low, f"{name}_high": own.high, f"{name}_n": float(own.n)}
