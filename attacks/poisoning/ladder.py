"""An honest ladder: is there a behaviour in the dense model that some honest compression of it would switch on?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ...compression.deployment.onnx_export import to_onnx
from ...compression.factorization.factorize import Factorize
from ...compression.pruning.prune import Prune
from ...compression.quantization.quantize import Quantize
from ...compression.recipe import Recipe
from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ...targets.model import Target, TorchTarget
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.twin.twin import twin_of
from ..access import Ledger
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Measurement
from ..preparation import Audited, Ran, Results, Scope
from ..risk import Metric, Risk
from .ladder_measure import RUNG, rung_of
from .ladder_measure import measure as measure_ladder
from .measure import most_suspicious, usual_size
from .risk import BACKDOOR, LADDER_BACKDOORS, TRIGGER_SUCCESS
from .trigger_search import TriggerSearch, answers

RUNGS: dict[str, Recipe] = {  # from mild to harsh in each family; nothing is fine-tuned, which would hide what they do
    "int8": Quantize(weight_bits=8),
    "int4": Quantize(weight_bits=4),
    "int3": Quantize(weight_bits=3),
    "prune 50 %": Prune(sparsity=0.5),
    "prune 80 %": Prune(sparsity=0.8),
    "prune 90 %": Prune(sparsity=0.9),
    "low rank, 95 % of the energy": Factorize(energy=0.95, convolution="channel"),
    "low rank, 80 % of the energy": Factorize(energy=0.8, convolution="channel"),
}


class Summary(Document):
    """`Evidence.summary`: names of the rungs that could be made."""

    rungs: tuple[str, ...]


@ATTACKS.register
class BackdoorLadder(TriggerSearch):
    """Behaviour that is dormant in the dense model and that an honest compression switches on (Hong et al. 2021,
    arXiv:2110.13541), whichever one: the dense model is compressed in many ways, and each result is looked at.

    Rungs are made with the attacker's own records for calibration and without fine-tuning. In each the differential
    inversion of `backdoor` is run, and the smallest trigger is put on other records and the rung's ONNX file asked.
    Beside it, without any trigger: whether decisions that change go to one class more often than the dense model's
    second choices explain.

    Evidence arrays, n evaluation records, r rungs, c classes: `ids` int64 [n]; `targets` int64 [c]; `usual` float32
    [kinds], what the dense model takes; `size` float32 [r, kinds, c]; `shown` int64 [r, 2], kind and place among
    `targets` of each rung's most suspicious trigger; `mask` float32 [r, h, w] and `pattern` float32 [r, *shape];
    `clean`, `second` int64 [n], the dense model's first and second choices, `margin` float32 [n] between their logits;
    `rung_clean`, `rung_triggered` int64 [r, n], answers of each rung without and with its trigger; `parent_triggered`
    int64 [r, n], the dense model's to the same.
    """

    kind: Literal["backdoor-ladder"] = "backdoor-ladder"
    risk: ClassVar[Risk] = BACKDOOR
    metrics: ClassVar[tuple[Metric, ...]] = (LADDER_BACKDOORS, TRIGGER_SUCCESS)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        if not model.is_dense:
            return ()
        classes = scope.data.classes
        gradients = self.passes(classes, beside=False) + len(RUNGS) * self.passes(classes, beside=True)
        answered = 4 * len(RUNGS) * self.records
        return (Run(effort=Effort(answers=answered, gradients=gradients, seconds=0.3 * len(RUNGS))),)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", RUNG) if model.is_dense else ("",)

    def reads(self, model: Audited, scope: Scope) -> tuple[Ran, ...]:
        return (Ran(model.name),) if model.is_dense else ()

    def run(self, case: Case, *, seed: int) -> Evidence:
        targets, dense = self.targets(case, seed), case.parent
        if dense is None:
            raise NotApplicable("the dense model's weights are not at hand")
        ledger, skipped = Ledger(), dict[str, str]()
        own, _ = self.search(case, TorchTarget(dense), dense, None, seed, ledger)
        usual = usual_size(torch.stack([one.size for one in own]).numpy())
        count = min(self.records, len(case.evaluation))
        images, names = case.evaluation.x[:count], list[str]()
        rows: dict[str, list[Any]] = {}
        for name, recipe in RUNGS.items():
            try:
                data = _file(case, dense, recipe, seed)
                rung, twin = OnnxTarget(data), twin_of(data)
                found, _ = self.search(case, rung, twin, dense, seed, ledger)
            except NotApplicable as error:
                skipped[name] = str(error)
                continue
            names.append(name)
            size = torch.stack([one.size for one in found]).numpy()
            kind, at = most_suspicious(size, usual, True)[0].tolist()
            trigger = {"mask": found[kind].masks[at][None].numpy(), "pattern": found[kind].patterns[at][None].numpy()}
            ledger.queries += 2 * count
            told = {**trigger, **_asked(rung, dense, images, trigger)}
            for key, value in {"size": size, "shown": np.array([kind, at]), **told}.items():
                rows.setdefault(key, []).append(value)
        if not names:
            raise NotApplicable("none of the compressions applies to the dense model")
        alone = {key: np.concatenate(values) for key, values in rows.items() if key not in ("size", "shown")}
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "ids": np.asarray(case.ids[:count], np.int64),
            "targets": targets.numpy(),
            "usual": usual,
            "size": np.stack(rows["size"]),
            "shown": np.stack(rows["shown"]),
            **_choices(TorchTarget(dense), images),
            **alone,
        }
        return Evidence(arrays, {"rungs": names}, skipped=skipped, ledger=ledger)

    def form(self, model: Audited, scope: Scope) -> Form:
        data, n = scope.data, min(self.records, len(scope.data.evaluation_ids))
        c, last = min(self.classes, scope.data.classes), scope.data.classes - 1

        def layout(summary: Summary) -> Layout:
            r = len(summary.rungs)
            return {
                "ids": Array("int64", (n,)),
                "targets": Array("int64", (c,), 0, last),
                "usual": Array("float32", (len(self.kinds),), 0, 1),
                "size": Array("float32", (r, len(self.kinds), c), 0, 1),
                "shown": Array("int64", (r, 2), 0, max(c, len(self.kinds)) - 1),
                "mask": Array("float32", (r, *data.shape[-2:]), 0, 1),
                "pattern": Array("float32", (r, *data.shape)),
                "margin": Array("float32", (n,), 0),
                **{name: Array("int64", (n,), 0, last) for name in ("clean", "second")},
                **{name: Array("int64", (r, n), 0, last) for name in ASKED},
            }

        return Form(Summary, layout, holds=partial(_holds, scope, n))

    def measure(self, results: Results) -> list[Measurement]:
        return measure_ladder(results, self.steps, self.kinds)

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        if case.parent is None:
            return []
        first = _choices(TorchTarget(case.parent), case.evaluation.x[: len(evidence.arrays["ids"])])
        off = int((first["clean"] != evidence.arrays["clean"]).sum())
        return [f"{off} of the dense model's answers are others than `clean` has them"] if off else []

    def limits(self, scope: Scope) -> list[str]:
        return [
            "The honest ladder has one rung of each strength: behaviour that is bound to another bit width, sparsity "
            "or rank, or to a recipe that fine-tunes, would not show there. What is shipped is looked at by `backdoor`."
        ]


ASKED = ("rung_clean", "rung_triggered", "parent_triggered")


def _file(case: Case, dense: torch.nn.Module, recipe: Recipe, seed: int) -> bytes:
    made = recipe.apply(dense, case.attacker, case.bounds, seed=seed)
    return to_onnx(made, tuple(case.evaluation.x.shape[1:]))


def _asked(rung: Target, dense: torch.nn.Module, x: torch.Tensor, trigger: Arrays) -> dict[str, Any]:
    """`rung_clean`, `rung_triggered`, `parent_triggered`, int64 [1, n] each."""
    own, theirs = answers(rung, x, trigger, ""), answers(TorchTarget(dense), x, trigger, "")
    told = own["clean"][None], own["triggered"], theirs["triggered"]
    return dict(zip(ASKED, told, strict=True))


def _choices(dense: Target, x: torch.Tensor) -> dict[str, Any]:
    """`clean`, `second` and `margin` of the dense model."""
    values, places = dense.logits(x).cpu().topk(2, dim=1)
    margin = (values[:, 0] - values[:, 1]).float().numpy()
    return {"clean": places[:, 0].numpy(), "second": places[:, 1].numpy(), "margin": margin}


def _holds(scope: Scope, n: int, found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    require(np.array_equal(arrays["ids"], scope.data.evaluation_ids.numpy()[:n]), "ids are not those of the records")
    require(len(set(found.rungs)) == len(found.rungs) > 0, "a rung stands there twice, or none does")
    for position in range(len(found.rungs)):
        most = most_suspicious(arrays["size"][position], arrays["usual"], True)[:1]
        shown = rung_of(arrays, position)["shown"]
        require(np.array_equal(most, shown), "other triggers are shown than the most suspicious")
