"""Churn: the decisions that compression changes, found with one answer per record and no attacker."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, require
from ..access import Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Measurement
from ..preparation import Audited, Basis, Need, Ran, Results, Scope
from ..risk import Metric, Risk
from .measure import IDENTIFIED_RECORDS, LOW_MARGIN, NEGATIVE, WORST, compressed_from, measure_churn
from .risk import CHURN, CHURN_RISK, IDENTIFIED, LOW_MARGIN_FLIPS, NEGATIVE_FLIPS, WORST_GROUP


@ATTACKS.register
class Churn(Attack):
    """Decisions that are not those of the model it came from (predictive churn, Milani Fard et al. 2016).

    Negative flips (right before, wrong now; Yan et al. 2021, arXiv:2011.09161) are counted per class and group, those
    near the parent's decision boundary by themselves: there compression flips most (arXiv:2607.01478). One forward
    pass, no attacker. The class or group whose accuracy fell most has a figure of its own, with an interval that is
    simultaneous over all of them; of the dense model it is told which records most of its compressed versions decide
    otherwise (compression-identified exemplars, Hooker et al. 2019, arXiv:1911.05248).

    Evidence on all evaluation records, n of them: `ids` int64 [n]; `predicted` int64 [n], the label answered; `correct`
    bool [n]; `margin` float32 [n], at least 0: how far the best score is ahead of the second best.
    """

    kind: Literal["churn"] = "churn"
    risk: ClassVar[Risk] = CHURN_RISK
    metrics: ClassVar[tuple[Metric, ...]] = (CHURN, WORST_GROUP, NEGATIVE_FLIPS, LOW_MARGIN_FLIPS, IDENTIFIED)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        return (Run(uses_parent=False, effort=Effort(answers=len(scope.data.evaluation_ids))),)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", WORST, NEGATIVE, LOW_MARGIN, *((IDENTIFIED_RECORDS,) if model.is_dense else ()))

    def reads(self, model: Audited, scope: Scope) -> tuple[Need, ...]:
        return (*super().reads(model, scope), *(Ran(name) for name in compressed_from(model, scope)))

    def form(self, model: Audited, scope: Scope) -> Form:
        n = len(scope.data.evaluation_ids)
        arrays = {
            "ids": Array("int64", (n,)),
            "predicted": Array("int64", (n,), 0, scope.data.classes - 1),
            "correct": Array("bool", (n,)),
            "margin": Array("float32", (n,), low=0),
        }
        return Form(Document, arrays, holds=partial(_holds, scope))

    def run(self, case: Case, *, seed: int) -> Evidence:
        logits = case.deployed.logits(case.evaluation.x).cpu()
        if torch.isnan(logits).any():
            raise NotApplicable("The deployed model answers some records with NaN: it decides nothing there.")
        predicted, best = logits.argmax(1), logits.double().topk(2, 1).values
        margin = (best[:, 0] - best[:, 1]).nan_to_num(0.0).clamp_max(torch.finfo(torch.float32).max)
        arrays = {
            "ids": np.asarray(case.ids, dtype=np.int64),
            "predicted": predicted.numpy(),
            "correct": (predicted == case.evaluation.y.cpu()).numpy(),
            "margin": margin.float().numpy(),
        }
        return Evidence(arrays, {}, ledger=Ledger(queries=len(predicted)))

    def measure(self, results: Results) -> list[Measurement]:
        return measure_churn(results)

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        right = evidence.arrays["correct"]
        if basis.contradicted(evidence.arrays["ids"], right, right):
            return ["the records that the model classifies right are others"]
        return []

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        again = self.run(case, seed=0).arrays
        off = int((again["predicted"] != evidence.arrays["predicted"]).sum())
        return [f"{off} of {len(again['predicted'])} decisions are others"] if off else []

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Churn counts decisions that changed on these records. Classes and groups are named as worse only where "
            "chance is ruled out (exact McNemar, Holm): with few records of a class a real loss may go unnamed."
        ]


def _holds(scope: Scope, found: Document, arrays: Arrays, files: Mapping[str, Any]) -> None:
    ids = scope.data.evaluation_ids.numpy()
    require(np.array_equal(arrays["ids"], ids), "ids are not those of the records")
    right = arrays["predicted"] == scope.data.non_members.y.numpy()[ids]
    require(np.array_equal(arrays["correct"], right), "what is correct does not follow from the decisions")
