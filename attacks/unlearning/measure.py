"""Evidence of unlearning -> how well forgotten records are recognised and recalled, and what compression brought."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..access import Access, Flag
from ..case import Evidence
from ..measurement import Auc, Comparison, MeasuredPart, Measurement, Quantity, Rate, ThreatModel
from ..membership.population import PopulationPlan
from ..preparation import Ran, Results
from ..statistics.power import detectable_auc
from ..statistics.ranking import auc
from .risk import FORGET_AUC, FORGET_RECALL

RECALL = "recall"  # detail of a finding
NOTHING = "no records to forget"
WORDS = {
    "shadows": "margins beyond those of shadow models that never saw the record",
    "retrained": "margins beyond those of the model retrained without the records",
    "population": "margins beyond those of the attacker's own records of the class",
}


def measure_unlearning(results: Results) -> list[Measurement]:
    """Both figures, with what is known of models that never saw the records."""
    model = results.model
    evidence = results.evidence(Ran(model.name))
    if evidence is None:
        nothing = results.scope.data.forgotten is None
        reason = f"{NOTHING}: name them under data.forget" if nothing else results.why(Ran(model.name))
        return [
            Measurement(FORGET_AUC, "forgotten records recognised", None, reason=reason),
            Measurement(FORGET_RECALL, "forgotten records recalled", None, reason=reason, detail=RECALL),
        ]
    is_forgotten, headline = np.asarray(evidence.arrays["is_forgotten"], dtype=bool), evidence.summary["headline"]
    flags, notes = _caveats(results, evidence, is_forgotten)
    threat = _threat(results, evidence)
    others = {
        name: found for name in model.baselines if (found := results.evidence(Ran(name))) is not None
    }  # the same records, as many shadows
    recalled = _recalled(evidence)
    return [
        Measurement(
            FORGET_AUC,
            WORDS[headline],
            _recognised(evidence, headline),
            threat,
            comparisons=tuple(
                Comparison(
                    name,
                    _recognised(evidence, headline),
                    _recognised(other, headline),
                    flags=_flags(results, other, name),
                )
                for name, other in others.items()
                if f"score/{headline}" in other.arrays
            ),
            parts=tuple(
                MeasuredPart(name, _recognised(evidence, name), headline=name == headline)
                for name in WORDS
                if f"score/{name}" in evidence.arrays
            ),
            curves={"roc": _recognised(evidence, headline)},
            quantities=_margins(evidence, is_forgotten),
            notes=tuple(notes),
            flags=flags,
        ),
        Measurement(
            FORGET_RECALL,
            "forgotten records whose class gets more than half of the probability",
            Rate(recalled),
            threat,
            detail=RECALL,
            comparisons=tuple(
                Comparison(name, Rate(recalled), Rate(_recalled(other)), flags=_flags(results, other, name))
                for name, other in others.items()
            ),
            groups=_by_class(results, recalled),
            notes=(*_recall_of_others(evidence), *notes),
            flags=flags,
        ),
    ]


def _recognised(evidence: Evidence, name: str) -> Auc:
    """The AUC of a score; of that against shadows with what it varies by among models that never saw the records."""
    null = evidence.summary["null"]
    spread = 0.0 if null is None or name != "shadows" else float(null["spread"])
    return Auc(evidence.arrays[f"score/{name}"], np.asarray(evidence.arrays["is_forgotten"], dtype=bool), spread)


def _recalled(evidence: Evidence) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found: np.ndarray[Any, np.dtype[np.bool_]] = evidence.arrays["phi"][evidence.arrays["is_forgotten"]] > 0
    return found


def _by_class(results: Results, recalled: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Rate]:
    data = results.scope.data
    assert data.forgotten is not None, "there is evidence of it"
    labels = data.forgotten.y.cpu().numpy()
    masks = {name: labels == label for label, name in enumerate(data.class_names)}
    return {name: Rate(recalled[mask]) for name, mask in masks.items() if mask.any()}


def _margins(evidence: Evidence, is_forgotten: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[Quantity, ...]:
    phi = evidence.arrays["phi"]
    return tuple(
        Quantity(f"margin on {words}", "median", float(np.median(phi[mask])), int(mask.sum()))
        for words, mask in (("records to forget", is_forgotten), ("records never seen", ~is_forgotten))
    )


def _threat(results: Results, evidence: Evidence) -> ThreatModel:
    count = evidence.summary["shadows"]
    if count:
        knowledge = "knows the training, the recipe and the other records; asks about records that were to be forgotten"
        return ThreatModel(Access.SCORES, knowledge, f"{count} shadow models trained without them")
    budget = "no shadow model" if "score/retrained" not in evidence.arrays else "a model retrained without them"
    return ThreatModel(Access.SCORES, "owns records of the same kind that were not trained on", budget)


def _flags(results: Results, evidence: Evidence, model: str) -> tuple[str, ...]:
    """The trust flags of the attack on one model, and of the model itself."""
    return tuple(sorted({flag for raised in evidence.flags.values() for flag in raised} | results.flags(model)))


def _recall_of_others(evidence: Evidence) -> list[str]:
    null = evidence.summary["null"]
    if null is None:
        return []
    return [
        f"Models trained without them, and compressed alike, recall {100 * null['recall_mean']:.1f} % of them on "
        f"average (sd {100 * null['recall_sd']:.1f}, {null['targets']} shadow models)."
    ]


def _caveats(
    results: Results, evidence: Evidence, is_forgotten: np.ndarray[Any, np.dtype[np.bool_]]
) -> tuple[tuple[str, ...], list[str]]:
    """Trust flags and notes of both figures."""
    model, scope, null = results.model, results.scope, evidence.summary["null"]
    flags, notes = set(_flags(results, evidence, model.name)), list[str]()
    if null is not None:
        wider = f"; the interval is wider by what varies beyond the records, sd {null['spread']:.3f}"
        notes.append(
            f"Models that never saw the records, each shadow as target, get {null['auc_mean']:.3f} on average, "
            f"at most {null['auc_most']:.3f} (sd {null['auc_sd']:.3f}, {null['targets']} shadow models"
            f"{wider if null['spread'] > 0 else ''})."
        )
    elif evidence.summary["headline"] == "population":
        flags.add(Flag.DISTRIBUTION_SHIFT.value)
        notes.append(
            "Without shadow models or a retrained model, records to forget that are easier or harder than others look "
            "remembered or forgotten for that alone: give model.training and two shadow models or more, or a retrained "
            "model (`retrained`)."
        )
    if evidence.summary["shadows"]:
        notes += scope.shadow_notes
        if scope.shadows_differ or model.undeclared:
            flags.add(Flag.SHADOWS_DIFFER.value)
    headline = evidence.summary["headline"]
    found = auc(evidence.arrays[f"score/{headline}"], is_forgotten, level=0.99)
    if found.high < 0.5:
        notes.append(
            f"The records to forget are known less than records never seen (AUC {found.estimate:.3f}, 99 % interval "
            f"[{found.low:.3f}, {found.high:.3f}]): the unlearning went too far, which tells them apart as well."
        )
    return tuple(sorted(flags)), notes


def unseen(forgotten: int, population: PopulationPlan) -> list[str]:
    """Which leak would have gone unseen."""
    others = population.attacked // 2
    return [
        f"Unlearning: with {forgotten} records to forget and {others} never seen an AUC below "
        f"{detectable_auc(forgotten, others):.3f} would not be told from having forgotten."
    ]
