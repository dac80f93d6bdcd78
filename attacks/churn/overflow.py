"""Overflow: decisions that an 8-bit file takes otherwise in ONNX Runtime's default kernels than its integers say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ...targets.errors import NotApplicable, failing_as_not_applicable
from ...targets.form import Array, Arrays, Document, Form, require
from ...targets.interface.finished_model import Deployed
from ...targets.model import Target
from ...targets.runtimes.exact_products import overflows, unsigned_weights
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.untrusted.model_file import check_onnx
from ..access import Access, Ledger
from ..attack import Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Measurement, Rate, ThreatModel
from ..preparation import Audited, Ran, Results, Scope
from ..risk import Metric, Risk
from .risk import CHURN_RISK, OVERFLOWN

OVERFLOW = "overflow"  # detail of a run and of its finding
BITS = 8
ABOUT = "decisions of ONNX Runtime's default kernels that are not those of exact products"
EXACT = "not applicable: it multiplies no unsigned by signed bytes, of which default kernels may lose some"
ELSEWHERE = (
    "this processor multiplies bytes exactly (VNNI); on one that does not, default kernels may overflow: audit there, "
    "or compare answers with session.x64quantprecision set"
)
CURE = (
    "On such processors set the session option session.x64quantprecision to 1, or ship unsigned weights or 7-bit ones: "
    "all other figures of this audit are of exact products."
)


class Overflow(Attack):
    """What a processor without VNNI makes of an 8-bit file: nobody attacks, sums of products overflow 16 bits.

    ONNX Runtime multiplies unsigned activations by signed weights in pairs and adds these in 16 bits where the
    processor has no dot product of bytes. An audit runs such files exactly, as processors with VNNI do; here the bytes
    that ship are run as they are, and the decisions compared. Only a processor that overflows can tell. A run of the
    attack `churn`, on models that may hold weights of 8 bits.

    Evidence on all evaluation records, n of them: `ids` int64 [n]; `exact`, `default` int64 [n], the labels answered.
    """

    kind: Literal["overflow"] = "overflow"
    risk: ClassVar[Risk] = CHURN_RISK
    metrics: ClassVar[tuple[Metric, ...]] = (OVERFLOWN,)

    def form(self, model: Audited, scope: Scope) -> Form:
        n, classes = len(scope.data.evaluation_ids), scope.data.classes
        layout = {"ids": Array("int64", (n,))}
        layout |= {name: Array("int64", (n,), 0, classes - 1) for name in ("exact", "default")}
        return Form(Document, layout, holds=partial(_holds, scope))

    def run(self, case: Case, *, seed: int) -> Evidence:
        with failing_as_not_applicable("not applicable: it is no ONNX file"):
            checked = check_onnx(case.shipped)
        if not unsigned_weights(checked.copy()):
            raise NotApplicable(EXACT)
        if not overflows():
            raise NotApplicable(ELSEWHERE)
        read = case.assumptions
        plain = OnnxTarget(checked, output=None if read is None else read.output, exactly=False)
        targets: dict[str, Target] = {"exact": case.deployed}
        targets["default"] = plain if read is None else Deployed(plain, read)
        labels = {name: _labels(one.logits(case.evaluation.x)) for name, one in targets.items()}
        ids = np.asarray(case.ids, dtype=np.int64)
        return Evidence({"ids": ids, **labels}, {}, ledger=Ledger(queries=2 * len(ids)))

    def measure(self, results: Results) -> list[Measurement]:
        ran = Ran(results.model.name, OVERFLOW)
        evidence = results.evidence(ran)
        if evidence is None:
            return [Measurement(OVERFLOWN, ABOUT, None, detail=OVERFLOW, reason=results.why(ran))]
        exact, default = (evidence.arrays[name] for name in ("exact", "default"))
        y = results.scope.data.non_members.y.numpy()[evidence.arrays["ids"]]
        changed, lost = exact != default, int(((exact == y) & (default != y)).sum())
        told = f"{int(changed.sum())} of {len(changed)} decisions change, {lost} that were right are wrong. {CURE}"
        return [
            Measurement(
                OVERFLOWN,
                ABOUT,
                Rate(changed),
                ThreatModel(Access.SCORES, "nobody attacks: the file runs on a processor without VNNI", "one answer"),
                detail=OVERFLOW,
                reason="not gated: no built-in limit on what a processor's kernels change",
                available=len(changed),
                notes=(told if changed.any() else "No decision changes in this processor's default kernels.",),
            )
        ]

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        if not overflows():  # another machine than the audit's
            return []
        again = self.run(case, seed=0).arrays
        off = int((again["default"] != evidence.arrays["default"]).sum())
        return [f"{off} of {len(again['default'])} decisions of default kernels are others"] if off else []


def overflow_run(model: Audited, scope: Scope) -> tuple[Run, ...]:
    """On a model that may hold weights of 8 bits, as a finished file may that does not say how it was made."""
    if model.is_dense or (model.recipe is not None and (model.recipe.bits is None or model.recipe.bits > BITS)):
        return ()
    effort = Effort(answers=2 * len(scope.data.evaluation_ids))
    return (Run(detail=OVERFLOW, attack=Overflow(), uses_parent=False, effort=effort),)


def _labels(logits: torch.Tensor) -> np.ndarray[Any, Any]:
    if torch.isnan(logits).any():
        raise NotApplicable("the file answers some records with NaN")
    return logits.argmax(1).cpu().numpy().astype(np.int64)


def _holds(scope: Scope, found: Document, arrays: Arrays, files: Mapping[str, Any]) -> None:
    require(np.array_equal(arrays["ids"], scope.data.evaluation_ids.numpy()), "ids are not those of the records")
