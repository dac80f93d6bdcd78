"""Ownership: can a compressed file be shown to come from one's dense model, against models that do not?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
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
from ..preparation import OTHERWISE, Audited, Basis, Deployed, Inputs, Ran, Results, Scope
from ..reconstruction.fingerprint import SURE as SURE_OF_WEIGHTS
from ..reconstruction.fingerprint import fingerprint
from ..risk import Metric, Risk
from .boundary import FEWEST, SURE, Match, Questions, held_against, together
from .controls import Controls, agreements_of, questions_of
from .risk import AGREEMENT, OWNED, OWNERSHIP
from .units import compare_units

DECISIONS = "agreement"  # detail of a finding
NEARLY = 0.5  # standard deviations: another processor adds up in another order
UNSHOWN = "a copy that was distilled, trained on for long, or made to decide otherwise on purpose"


class Kind(Document):
    """Of one kind of question: how many there are, and the controls' agreement with the dense model on them."""

    name: Annotated[str, Field(max_length=40)]
    count: Annotated[int, Field(ge=1)]
    controls: Annotated[tuple[Share, ...], Field(min_length=FEWEST)]


class Summary(Document):
    """`Evidence.summary`. `deviations`: of `reconstruction.fingerprint`, by weights; `units`: of `compare_units`, by
    hidden units; None: none compared.
    """

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    deviations: float | None
    units: float | None


@dataclass(frozen=True)
class _Known:
    """The questions, the controls' answers, and how to come by the dense model, as it ships."""

    asked: Questions
    controls: dict[str, list[float]]
    parent: Callable[[], Case]


@ATTACKS.register
class Ownership(Attack):
    """Whether the file decides, and holds weights, as only a copy of the dense model does.

    By decisions: on records off the data and just beyond the dense model's boundary (IPGuard, Cao et al. 2021,
    arXiv:1910.12903), against shadow models as controls, which were trained independently of it. By weights:
    `reconstruction.fingerprint`. By hidden units, which factors of a low rank leave as they are: `compare_units`.

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
        agrees = np.concatenate(_answers(known, case))
        deviations, units = _likenesses(known, case)
        kinds = [
            {"name": kind, "count": len(own), "controls": known.controls[kind]}
            for kind, (_, own) in known.asked.items()
        ]
        summary = {"kinds": kinds, "deviations": deviations, "units": units}
        return Evidence({"agrees": agrees}, summary, ledger=Ledger(queries=len(agrees)))

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        known: _Known | None = case.prepared
        if known is None:
            return []
        stored, wrong = evidence.arrays["agrees"], list[str]()
        now = np.concatenate(_answers(known, case))
        if now.shape != stored.shape or (now != stored).sum() > max(1, OTHERWISE * len(stored)):
            wrong.append("it decides otherwise on the questions")
        said = (evidence.summary["deviations"], evidence.summary["units"])
        for words, before, after in zip(("weights", "hidden units"), said, _likenesses(known, case), strict=True):
            if (before is None) != (after is None) or abs((before or 0.0) - (after or 0.0)) > NEARLY:
                wrong.append(f"its {words} are not so far from chance")
        return wrong

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        known = basis.prepared()
        if not isinstance(known, _Known):
            return []
        stored = {one.name: (one.count, list(one.controls)) for one in Summary.model_validate(evidence.summary).kinds}
        given = {kind: (len(own), known.controls[kind]) for kind, (_, own) in known.asked.items()}
        return [] if stored == given else ["its questions, or the controls' answers, are others than were prepared"]

    def measure(self, results: Results) -> list[Measurement]:
        model = results.model
        if not self.runs(model, results.scope):
            why = (
                "it is the dense model itself"
                if model.is_dense
                else "not applicable: no control models (shadow models of the dense model) to compare with"
            )
            return [Measurement(OWNED, "decisions, weights and hidden units", None, reason=why)]
        evidence = results.evidence(Ran(model.name))
        if evidence is None:
            return [
                Measurement(OWNED, "decisions, weights and hidden units", None, reason=results.why(Ran(model.name)))
            ]
        return measured(evidence)

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Ownership is shown against controls of the same architecture and training. Students, and copies that were "
            "trained on, may not match: that is no evidence that a model is not one's own. Weights and hidden units "
            "match those of a model trained on other records from the same initial weights, too (a public checkpoint, "
            "a common seed): the controls do not share them."
        ]


def _controls(model: Audited, scope: Scope) -> Controls | None:
    """None: it is dense, its dense model is not known, or shadows are none."""
    if model.is_dense or model.parent is None or scope.data.members is None:
        return None
    signals = signals_of(scope, model.parent, None)
    if signals is None:
        return None
    return Controls(model.parent, tuple(chunk for replay in signals.replays for chunk in replay.chunks))


def _known(controls: Controls, parent: str, inputs: Inputs) -> _Known:
    prepared = inputs.prepared(controls)
    asked = questions_of(prepared)
    agreements = {kind: agreements_of(prepared.arrays, kind) for kind in asked}
    return _Known(asked, agreements, partial(inputs.case, parent))


def _answers(known: _Known, case: Case) -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    """Of each kind of question, where the deployed model decides as the dense one."""
    found = []
    for x, own in known.asked.values():
        logits = case.deployed.logits(x).cpu()
        if torch.isnan(logits).any():
            raise NotApplicable("The deployed model answers some records with NaN: it decides nothing there.")
        found.append((logits.argmax(1) == own).numpy())
    return found


def _likenesses(known: _Known, case: Case) -> tuple[float | None, float | None]:
    """How far weights and hidden units lie from chance, in standard deviations; None where none can be compared."""
    dense, by_weights, by_units = known.parent(), None, None
    if not case.shipped or not dense.shipped:
        return None, None
    with suppress(CrushproofError):  # other layers than the dense model's, or no ONNX file
        seen = fingerprint(case.shipped, dense.shipped)
        by_weights = seen.deviations if seen.weights else None
    with suppress(CrushproofError):
        found = compare_units(case.shipped, dense.shipped, case.evaluation.x, case.assumptions, dense.assumptions)
        by_units = found.deviations if found.count else None
    return by_weights, by_units


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
    sure = {"weights": summary.deviations, "hidden units": summary.units}
    controls = len(summary.kinds[0].controls)
    threat = ThreatModel(
        Access.LABELS,
        f"the owner has the dense model and {controls} controls",
        f"{len(evidence.arrays['agrees'])} queries",
    )
    word = {True: "matched", False: "not matched"}
    told = [
        f"By {name}: "
        + (
            "they cannot be held against the dense model's."
            if away is None
            else f"{word[away > SURE_OF_WEIGHTS]}, {away:.1f} standard deviations from units in random order (matched: "
            f"above {SURE_OF_WEIGHTS:.0f})."
        )
        for name, away in sure.items()
    ]
    note = (
        f"By decisions: {word[by_decisions]}, p = {p_value:.2g} against {controls} controls (matched: below {SURE:g}, "
        f"and above the best of them). {' '.join(told)}"
    )
    known = [away for away in sure.values() if away is not None]
    ways = Found(by_decisions + sum(away > SURE_OF_WEIGHTS for away in known), 1 + len(known), UNSHOWN)
    owned = Measurement(
        OWNED,
        "decisions where only copies agree, weights and hidden units",
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
