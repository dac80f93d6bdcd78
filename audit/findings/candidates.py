"""From cells to the row of one model: its quality, size, certificate, what its defense promises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...attacks.dp_audit.accounting import prv_composed
from ...attacks.measurement import Comparison, Mean, Measurement, Outcome, Rate
from ...compression.wrapping import compressed_by
from ..engine.cells import Result
from ..plan.plan import DENSE
from ..schema.file_rows import Certificate, Footprint, Kernels, Lineage, Runtime
from ..schema.rows import Candidate, Classes, Draw, Estimate
from ..subject.audited import AuditedModel, DenseModel, FinishedFile
from ..suite.attack_cells import attack_cell
from .data_summary import classes_row
from .estimates import change, estimate, rate
from .results import AuditResults

Measured = Sequence[tuple[Measurement, float]]


def candidate_row(results: AuditResults, model: AuditedModel, made: Result, draws: Measured) -> Candidate:
    """The row of a model that could be made.

    Args:
        made: what was stored of it.
        draws: figures of a random recipe's draws, each with the level of its interval.
    """
    suite = results.suite
    changes = {}
    for name in model.baselines:
        other = results.of(name)
        if other is not None:
            flags = tuple(sorted(results.flags(suite.models[name])))
            comparison = Comparison(name, _quality(made), _quality(other), flags=flags)
            changes[name] = change(comparison, seed=0)
    weights = dict(made.document["footprint"])
    plain = results.of(DENSE) if suite.lineup.dense else None
    own = weights["payload_bytes"]
    ratio = own if plain is None else plain.document["footprint"]["payload_bytes"]
    parent = None if model.parent is None or model.is_dense else model.parent.name
    statement = statement_of(results, model)
    quality = "mean_squared_error" if isinstance(_quality(made), Mean) else "accuracy"
    return Candidate(
        name=model.name,
        role="dense" if model.is_dense else "control" if model.control else "candidate",
        technique=_technique(model),
        family=_family(model),
        recipe=None if model.recipe is None else model.recipe.model_dump(mode="json"),
        promise=model.recipe.promise if model.file is not None and model.recipe is not None else None,
        recipe_words=_words(model),
        parent=parent,
        defense=None if model.defense is None else model.defense.kind,
        defense_title=None if model.defense is None else model.defense.named(),
        defense_words=None if model.defense is None else model.defense.phrase(statement),
        statement=statement,
        verdict="not-gated",
        accuracy=estimate(_quality(made)) if quality == "accuracy" else None,
        mean_squared_error=estimate(_quality(made)) if quality != "accuracy" else None,
        quality_change=None if parent is None else changes.get(parent),
        quality_change_dense=changes.get(DENSE) if DENSE in model.baselines and parent != DENSE else None,
        classes=_classes(results, parent, made),
        disagreement=_disagreement(results, parent, made),
        footprint=Footprint.model_validate({**weights, "ratio": ratio / own}),
        certificate=_certificate(results, model.name, made),
        kernels=None if made.document["kernels"] is None else Kernels.model_validate(made.document["kernels"]),
        file=None if model.file is None else Path(model.file.name).name,
        assumed=[
            *([] if model.file is None else model.file.notes),
            *made.document.get("notes", []),
            *filter(None, [made.document.get("varies")]),
        ],
        lineage=_lineage(results, model.name),
        runtimes=[
            Runtime(name=label, phrase=phrase, **found.document)
            for label, phrase in suite.lineup.runtime_phrases.items()
            if (found := results.get(suite.runtime_cell(model.name, label))) is not None
        ],
        flags=sorted(results.flags(model)),
        digest=made.document["digest"],
        draws=_draws(results, model, draws),
    )


def _quality(result: Result) -> Outcome:
    """Whether each record is right, or the error of each, of a model of values."""
    if "evidence/error" in result.arrays:
        return Mean(result.arrays["evidence/error"])
    return Rate(result.arrays["evidence/correct"])


def _technique(model: AuditedModel) -> str:
    if isinstance(model, DenseModel):
        return "dense"
    return "file" if isinstance(model, FinishedFile) else compressed_by(model.recipe).kind


def _family(model: AuditedModel) -> str:
    if isinstance(model, DenseModel):
        return ""
    return "Finished files" if isinstance(model, FinishedFile) else compressed_by(model.recipe).family


def _words(model: AuditedModel) -> str:
    if model.file is not None:
        declared = f", declared as {model.recipe.phrase}" if model.recipe is not None else ""
        return f"finished {model.file.kind.upper()} file{declared}"
    return "uncompressed" if model.recipe is None else model.recipe.phrase


def _disagreement(results: AuditResults, parent: str | None, made: Result) -> Estimate | None:
    """The share of non-members that change their label, whether that is for the better or the worse."""
    theirs = None if parent is None else results.of(parent)
    if theirs is None or "evidence/predicted" not in made.arrays:
        return None
    return rate(made.arrays["evidence/predicted"] != theirs.arrays["evidence/predicted"])


def _classes(results: AuditResults, parent: str | None, made: Result) -> Classes | None:
    theirs, data = None if parent is None else results.of(parent), results.suite.subject.data
    if data.regression:
        return None
    baseline = None if theirs is None else theirs.arrays["evidence/correct"]
    return classes_row(data, made.arrays["evidence/correct"], parent, baseline)


def _lineage(results: AuditResults, model: str) -> Lineage | None:
    found = results.get(results.suite.lineage_cell(model))
    return None if found is None else Lineage.model_validate(found.document)


def statement_of(results: AuditResults, model: AuditedModel) -> dict[str, Any]:
    """What the parent's training defense promises (or the plan claims) of the file that ships.

    Compression that looked at records through stated noise is counted in; through none, it voids the promise.
    """
    parent = model.parent
    result = None if parent is None else results.get(results.suite.training_cell(parent.name))
    statement = {} if result is None else dict(result.document["statement"])
    if parent is None or (parent.hardened is None and parent.claim is None):
        return statement
    spent = () if model.is_dense or model.recipe is None else model.recipe.spends(_members(results))
    if parent.hardened is not None:
        if model.void is not None:
            return parent.hardened.voided(statement)
        counts = parent.hardened.counts and statement
        return parent.hardened.composed(statement, spent) if spent and counts else statement
    assert parent.claim is not None, "else there is no statement"
    claimed = {"epsilon": parent.claim.epsilon, "delta": parent.claim.delta, "source": "the plan's claim"}
    if model.undeclared:
        return {**claimed, "epsilon": "void", "why": "how the file was compressed is not declared"}
    if model.void is not None:
        return {**claimed, "epsilon": "void", "why": "the compression looked at training records after the training"}
    if spent:  # basic composition, which holds however the claimed training kept its promise
        epsilon = parent.claim.epsilon + prv_composed(spent, parent.claim.delta)
        words = "; ".join(one.phrase for one in spent)
        return {"epsilon": epsilon, "delta": 2 * parent.claim.delta, "source": f"the plan's claim, and {words}"}
    return claimed


def _members(results: AuditResults) -> int:
    members = results.suite.subject.data.members
    return 0 if members is None else len(members)


def _certificate(results: AuditResults, model: str, made: Result) -> Certificate | None:
    """Over clean, random and, where an attack made some, adversarial inputs; None where there is no twin."""
    if made.document["certificate"] is None:
        return None
    kinds = dict(made.document["certificate"]["kinds"])
    for _, label in results.suite.lineup.attacks:
        position, _ = results.round_of(label, model)
        found = results.get(attack_cell(results.suite.round_label(label, position), model))
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


def _draws(results: AuditResults, model: AuditedModel, measured: Measured) -> list[Draw]:
    """Accuracy and the attacks' figures of every draw of a random recipe; the shipped one first."""
    rows = []
    for draw in range(len(model.draws) + 1) if model.draws else ():
        made = results.get(results.suite.model_cell(model.name, draw))
        if made is None:
            continue
        quality = _quality(made)
        figures = {("accuracy" if isinstance(quality, Rate) else "mean_squared_error"): estimate(quality)}
        for one, level in measured:
            if one.draw == draw and one.outcome is not None:
                figures.setdefault(one.metric.name, estimate(one.outcome, level))  # of the first attack that gives it
        rows.append(Draw(draw=draw, figures=figures))
    return rows
