"""From cells to the row of one candidate: accuracy, size, certificate, what its defense promises."""

from __future__ import annotations

from typing import Any

from ..attacks.evasion.evasion import Evasion
from .cells import Result
from .evasion_findings import robust_at
from .findings import Candidate, Certificate, Footprint
from .lineup import PLAIN, Contender
from .measures import rate, rate_change
from .reader import Reader, candidate_flags


def candidate_row(reader: Reader, contender: Contender) -> Candidate | None:
    """None when the candidate could not be made (its reason is a row of its own)."""
    suite = reader.suite
    result = reader.get(suite.candidate_cell(contender))
    if result is None:
        return None
    correct = result.arrays["evidence/correct"]
    changes = {}
    for name in contender.baselines:
        other = reader.get(suite.candidate_cell(suite.lineup.contender(name)))
        if other is not None:
            changes[name] = rate_change(correct, other.arrays["evidence/correct"], name)
    weights = dict(result.document["footprint"])
    plain = reader.get(suite.candidate_cell(suite.lineup.contender(PLAIN)))
    own = weights["payload_bytes"]
    ratio = own if plain is None else plain.document["footprint"]["payload_bytes"]
    recipe = contender.recipe
    statement = _statement(reader, contender)
    return Candidate(
        name=contender.name,
        role="dense" if recipe is None else "control" if contender.control else "candidate",
        technique="dense" if recipe is None else recipe.kind,
        recipe=None if recipe is None else recipe.model_dump(mode="json"),
        recipe_words="uncompressed" if recipe is None else recipe.words,
        parent=None if recipe is None else contender.parent.name,
        defense=None if contender.defense is None else contender.defense.kind,
        defense_words=_defense_words(contender, statement),
        statement=statement,
        verdict="not-gated",
        accuracy=rate(correct),
        accuracy_change=None if recipe is None else changes.get(contender.parent.name),
        accuracy_change_dense=None if contender.parent.name == PLAIN else changes.get(PLAIN),
        footprint=Footprint.model_validate({**weights, "ratio": ratio / own}),
        certificate=_certificate(reader, contender, result),
        flags=sorted(candidate_flags(reader, contender)),
        digest=result.document["digest"],
        draws=_draws(reader, contender, result),
    )


def _statement(reader: Reader, contender: Contender) -> dict[str, Any]:
    """What the parent's training defense promises; void where compression looked at members after DP-SGD."""
    result = reader.get(f"train/{contender.parent.name}")
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


def _certificate(reader: Reader, contender: Contender, result: Result) -> Certificate:
    """Over clean, random and, where evasion ran, adversarial inputs."""
    kinds = dict(result.document["certificate"]["kinds"])
    for attack, label in reader.suite.attacks:
        found = reader.get(f"{label}/{contender.name}") if isinstance(attack, Evasion) else None
        if found is not None and "certificate" in found.document:
            kinds |= found.document["certificate"]["kinds"]
    n = sum(kind["n"] for kind in kinds.values())
    return Certificate(
        inputs=", ".join(kinds),
        n=n,
        label_agreement=sum(kind["n"] * kind["label_agreement"] for kind in kinds.values()) / n,
        max_logit_difference=max(kind["max_logit_difference"] for kind in kinds.values()),
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
        found = reader.get(f"{label}/{contender.name}/draw-{draw}")  # one attack for all draws: gradients at the gate
        if isinstance(attack, Evasion) and found is not None:
            row |= _figures("robust_accuracy", robust_at(found, attack.gate_epsilon))
        rows.append(row)
    return rows


def _figures(name: str, successes: Any) -> dict[str, float]:
    """A rate with its interval and n, flat."""
    own = rate(successes)
    return {name: own.estimate, f"{name}_low": own.low, f"{name}_high": own.high, f"{name}_n": float(own.n)}
