"""Who is fooled alone: records on which a compressed model errs and the dense one it came from still answers right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from ....targets.data.records import Records
from ....targets.form import Array, Document, Form, Layout
from ....targets.model import Target, device_of
from ....targets.seeds import derive
from ....targets.steps import Arrays
from ....targets.technique import Technique
from ....training.ball import Ball, Norm
from ...access import Access, Ledger
from ...case import Case, Evidence
from ...effort import Effort
from ...measurement import MeasuredPart, Measurement, Rate, ThreatModel
from ...preparation import Deployed, Inputs, Need, Preparation, Prepared, Ran, Results, Scope
from ..blocks import Counter, at_once, blocks, followable, kept_at_cost, seek
from ..gradient.diva import Diva
from ..risk import EVADE_ONLY

DETAIL = EVADE_ONLY.name  # of the finding
WORST = "inputs of the worst case"  # no part can be labelled so


class Asked(Document):
    """`without_diva`: why nothing was crafted on both models at once; None: it was."""

    without_diva: str | None


@dataclass(frozen=True)
class EvadeOnly(Preparation):
    """What the dense model answers to inputs that fool a candidate at the gate's epsilon: those of its worst case, and
    those that DIVA makes on both.

    Arrays `worst` and `diva`, bool [n]: the candidate's deployed model errs, the baseline's answers right. `diva` is
    missing where there is no differentiable module.
    """

    phase: ClassVar[str] = "evasion"
    label: str
    candidate: str
    baseline: str
    norm: Norm
    records: int
    part: Diva

    @property
    def name(self) -> str:
        return f"{DETAIL}/{self.label}/{self.candidate}"

    @property
    def words(self) -> str:
        return f"inputs that fool {self.candidate} and not {self.baseline} ({self.records} records)"

    @property
    def identity(self) -> Any:
        return [*self.sharing, self.records]

    @property
    def sharing(self) -> Any:
        return [DETAIL, self.norm]

    @property
    def techniques(self) -> tuple[Technique, ...]:
        return (self.part,)

    @property
    def effort(self) -> Effort:
        answers, gradients = 2 * self.records, self.part.effort.gradients * self.records
        return Effort(answers=answers, gradients=gradients, through=self.candidate)

    @property
    def needs(self) -> tuple[Need, ...]:
        return Ran(self.candidate), Deployed(self.candidate), Deployed(self.baseline)

    def compute(self, inputs: Inputs) -> Prepared:
        evidence, case = inputs.evidence(Ran(self.candidate)), inputs.case(self.candidate)
        dense, gate = inputs.deployed(self.baseline), evidence.summary["gate_epsilon"]
        records = case.evaluation.take(torch.arange(len(evidence.arrays["ids"])))
        adversarial = torch.from_numpy(np.array(evidence.arrays["adversarial"])).to(records.x.device)
        right = (dense.logits(adversarial).argmax(1) == records.y).cpu().numpy()
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "worst": np.asarray(evidence.arrays[f"worst/{gate!r}"], dtype=bool) & right
        }
        why_not = self.part.why_not(case)
        if why_not is None:
            arrays["diva"] = self._crafted(
                followable(case, [self.part]), dense, records, evidence, derive(inputs.scope.seed, DETAIL)
            )
        return Prepared(arrays, {"without_diva": why_not})

    def _crafted(self, case: Case, dense: Target, records: Records, evidence: Evidence, seed: int) -> Any:
        """bool [n], of the records that the candidate answers right; each block of them is kept."""
        assert case.twin is not None  # as the part found
        records = records.to(device_of(case.twin, records.x.device))
        correct = np.asarray(evidence.arrays["clean_correct"], dtype=bool)
        counter, found = Counter(len(records)), []
        for first, end in blocks(len(records)):
            some = Records(records.x[first:end], records.y[first:end])
            ball = Ball(self.norm, evidence.summary["gate_epsilon"], some.x, case.bounds.to(some.x.device))
            compute = partial(self._block, case, dense, some, ball, correct[first:end], seed, first, counter)
            form = {"alone": Array("bool", (end - first,))}
            found.append(kept_at_cost(f"{DETAIL}/{first}-{end}", Ledger(), compute, form)["alone"])
        return np.concatenate(found)

    def _block(
        self,
        case: Case,
        dense: Target,
        records: Records,
        ball: Ball,
        correct: np.ndarray[Any, np.dtype[np.bool_]],
        seed: int,
        first: int,
        counter: Counter,
        spent: Ledger,
    ) -> Arrays:
        found = seek(
            self.part,
            case,
            records,
            np.asarray(case.ids[first : first + len(records)], dtype=np.int64),
            ball,
            among=torch.from_numpy(correct),
            seed=seed,
            ledger=spent,
            batch=at_once(case),
            first=first,
            counter=counter,
        )
        spent.queries += len(records)
        right = dense.logits(found.best.to(records.x.device)).argmax(1) == records.y
        return {"alone": (found.fooled & right.cpu()).numpy()}

    def form(self, scope: Scope) -> Form:
        return Form(Asked, partial(_layout, min(self.records, len(scope.data.evaluation_ids))))


def _layout(count: int, document: Asked) -> Layout:
    outcomes = Array("bool", (count,))
    return {"worst": outcomes} if document.without_diva else {"worst": outcomes, "diva": outcomes}


def evade_only(
    results: Results,
    asked: EvadeOnly,
    setting: Mapping[str, str | float | int],
    threat: ThreatModel,
    flags: tuple[str, ...],
    available: int,
) -> Measurement:
    """The share of records of which one input or the other fools the candidate alone.

    Args:
        setting, threat, flags: of the robust accuracy at the same epsilon.
    """
    title = f"worst case per record over {WORST} and of DIVA, asked of {asked.baseline} as well"
    found = results.prepared(asked)
    if found is None:
        why = f"what {asked.baseline} answers to the inputs that fool {asked.candidate} is not known"
        return Measurement(EVADE_ONLY, title, None, reason=why, detail=DETAIL, setting={**setting})
    worst, diva, skipped = found.arrays["worst"], found.arrays.get("diva"), found.document["without_diva"]
    if diva is not None:
        threat = replace(threat, access=Access.WHITE_BOX)
    both = ", and so gradients of both" if diva is not None else ""
    return Measurement(
        EVADE_ONLY,
        title,
        Rate(worst if diva is None else worst | diva),
        replace(threat, knowledge=f"has the shipped bytes and {asked.baseline}{both}"),
        detail=DETAIL,
        setting={**setting},
        available=available,
        flags=flags,
        parts=(
            MeasuredPart(WORST, Rate(worst)),
            MeasuredPart("diva", None if diva is None else Rate(diva), skipped=skipped),
        ),
    )
