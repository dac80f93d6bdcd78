"""Ownership: can a compressed file be shown to come from one's dense model, against models that do not?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from ...targets.errors import CrushproofError, NotApplicable
from ...targets.form import Array, Document, Form, Layout, Share
from ..access import Access, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Found, MeasuredPart, Measurement, Quantity, Rate, ThreatModel
from ..membership.replayed import signals_of
from ..preparation import Audited, Deployed, Inputs, Ran, Results, Scope
from ..reconstruction.fingerprint import SURE as SURE_OF_WEIGHTS
from ..reconstruction.fingerprint import Fingerprint, fingerprint
from ..risk import Metric, Risk
from .boundary import FEWEST, SURE, Match, Questions, held_against, together
from .controls import Controls, agreements_of, questions_of
from .risk import AGREEMENT, OWNED, OWNERSHIP

DECISIONS = "agreement"  # detail of a finding
UNSHOWN = "a copy that was distilled, trained on for long, or made to decide otherwise on purpose"


class Kind(Document):
    """Of one kind of question: how many there are, and the controls' agreement with the dense model on them."""

    name: Annotated[str, Field(max_length=40)]
    count: Annotated[int, Field(ge=1)]
    controls: Annotated[tuple[Share, ...], Field(min_length=FEWEST)]


class Summary(Document):
    """`Evidence.summary`. `deviations`: of `reconstruction.fingerprint`, by weights; None: no weights compared."""

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    deviations: float | None


@dataclass(frozen=True)
class _Known:
    asked: Questions
    controls: dict[str, list[float]]
    shipped: bytes


@ATTACKS.register
class Ownership(Attack):
    """Whether the file decides, and holds weights, as only a copy of the dense model does.

    By decisions: on records off the data and just beyond the dense model's boundary (IPGuard, Cao et al. 2021,
    arXiv:1910.12903), against shadow models as controls, which were trained independently of it. By weights:
    `reconstruction.fingerprint`.

    Evidence: `agrees` bool [m], on all questions, kind after kind.
    """

    kind: Literal["ownership"] = "ownership"
    risk: ClassVar[Risk] = OWNERSHIP
    metrics: ClassVar[tuple[Metric, ...]] = (OWNED, AGREEMENT)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        controls = _controls(model, scope)
        if controls is None or model.parent is None:
            return ()
        prepare = partial(_known, controls, model.parent.name)
        need = Deployed(model.parent.name)
        return (Run(needs=(controls, need), prepare=prepare, uses_parent=False, effort=Effort(seconds=1.0)),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Ran, ...]:
        return (Ran(model.name),) if self.runs(model, scope) else ()

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", DECISIONS)

    def form(self, model: Audited, scope: Scope) -> Form:
        def layout(summary: Summary) -> Layout:
            return {"agrees": Array("bool", (sum(one.count for one in summary.kinds),))}

        return Form(Summary, layout)

    def run(self, case: Case, *, seed: int) -> Evidence:
        known: _Known | None = case.prepared
        if known is None:
            raise NotApplicable("no control models: what agreement chance explains is not known")
        agrees: list[np.ndarray[Any, Any]] = []
        for x, own in known.asked.values():
            logits = case.deployed.logits(x).cpu()
            if torch.isnan(logits).any():
                raise NotApplicable("The deployed model answers some records with NaN: it decides nothing there.")
            agrees.append((logits.argmax(1) == own).numpy())
        seen: Fingerprint | None = None
        if case.shipped and known.shipped:
            try:
                seen = fingerprint(case.shipped, known.shipped)
            except CrushproofError:
                seen = None  # other layers than the dense model's: decisions alone
        kinds = [
            {"name": kind, "count": len(own), "controls": known.controls[kind]}
            for kind, (_, own) in known.asked.items()
        ]
        deviations = None if seen is None or not seen.weights else seen.deviations
        queries = sum(len(one) for one in agrees)
        return Evidence(
            {"agrees": np.concatenate(agrees)},
            {"kinds": kinds, "deviations": deviations},
            ledger=Ledger(queries=queries),
        )

    def measure(self, results: Results) -> list[Measurement]:
        model = results.model
        if not self.runs(model, results.scope):
            why = (
                "it is the dense model itself"
                if model.is_dense
                else "not applicable: no control models to compare with"
            )
            return [Measurement(OWNED, "decisions and weights", None, reason=why)]
        evidence = results.evidence(Ran(model.name))
        if evidence is None:
            return [Measurement(OWNED, "decisions and weights", None, reason=results.why(Ran(model.name)))]
        return measured(evidence)

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Ownership is shown against controls of the same architecture and training. Students, and copies that were "
            "trained on, may not match: that is no evidence that a model is not one's own."
        ]


def _controls(model: Audited, scope: Scope) -> Controls | None:
    """None: it is dense, its dense model is not known, or shadows are none."""
    if model.is_dense or model.parent is None or scope.data.members is None:
        return None
    chunks = tuple(chunk for replay in signals_of(scope, model.parent, None).replays for chunk in replay.chunks)
    return Controls(model.parent, chunks) if chunks else None


def _known(controls: Controls, parent: str, inputs: Inputs) -> _Known:
    prepared = inputs.prepared(controls)
    asked = questions_of(prepared)
    return _Known(asked, {kind: agreements_of(prepared.arrays, kind) for kind in asked}, inputs.case(parent).shipped)


def matches_of(evidence: Evidence) -> dict[str, Match]:
    """By kind of question."""
    found, start = {}, 0
    for one in Summary.model_validate(evidence.summary).kinds:
        agrees = evidence.arrays["agrees"][start : start + one.count]
        found[one.name] = held_against(float(agrees.mean()), one.controls, one.count)
        start += one.count
    return found


def measured(evidence: Evidence) -> list[Measurement]:
    """In how many ways it is one's own; and its agreement, kind by kind, beside the controls'."""
    summary, matches = Summary.model_validate(evidence.summary), matches_of(evidence)
    p_value, by_decisions = together(list(matches.values()))
    by_weights = summary.deviations is not None and summary.deviations > SURE_OF_WEIGHTS
    controls = len(summary.kinds[0].controls)
    threat = ThreatModel(
        Access.LABELS,
        f"the owner has the dense model and {controls} controls",
        f"{len(evidence.arrays['agrees'])} queries",
    )
    weights = (
        "its weights cannot be held against the dense model's."
        if summary.deviations is None
        else f"its weights lie {summary.deviations:.1f} standard deviations from units in random order (from "
        f"{SURE_OF_WEIGHTS:.0f} on it is one's own)."
    )
    word = {True: "matched", False: "not matched"}
    note = (
        f"By decisions: {word[by_decisions]}, p = {p_value:.2g} against {controls} controls (matched: below {SURE:g}, "
        f"and above the best of them). By weights: {word[by_weights]}; {weights}"
    )
    ways = Found(by_decisions + by_weights, 1 + (summary.deviations is not None), UNSHOWN)
    owned = Measurement(
        OWNED,
        "decisions where only copies agree, and weights",
        ways,
        threat,
        notes=(note,),
        gateable=False,
        reason="not gated: evidence for the owner, no risk by itself",
    )
    parts, quantities, start = [], [], 0
    surest = min(matches, key=lambda kind: matches[kind].p_value)
    for one in summary.kinds:
        rate = Rate(evidence.arrays["agrees"][start : start + one.count])
        parts.append(MeasuredPart(one.name, rate, headline=one.name == surest))
        quantities.append(Quantity(f"controls' agreement, {one.name}", "mean", float(np.mean(one.controls)), controls))
        quantities.append(Quantity(f"controls' agreement, {one.name}", "largest", max(one.controls), controls))
        start += one.count
    agreement = Measurement(
        AGREEMENT,
        "the dense model's decisions, on records that only copies decide alike",
        next(part.outcome for part in parts if part.name == surest),
        threat,
        detail=DECISIONS,
        parts=tuple(parts),
        quantities=tuple(quantities),
        gateable=False,
        reason="not gated: evidence for the owner, no risk by itself",
    )
    return [owned, agreement]
