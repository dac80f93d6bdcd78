"""Backdoors: does a small trigger call a class, and is it compression that switched it on?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ...targets.model import TorchTarget
from ..access import Ledger
from ..attack import ATTACKS, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Measurement
from ..preparation import Audited, Inputs, Ran, Results, Scope
from ..risk import Metric, Risk
from .inversion import ALONE
from .measure import PLAIN, TRIGGER, measure_backdoors, most_suspicious, usual_size
from .risk import BACKDOOR, BACKDOORS, PLAIN_BACKDOORS, TRIGGER_SUCCESS
from .trigger_search import TriggerSearch, answers


class Summary(Document):
    """`Evidence.summary`: whether a parent stood beside the model, and records that triggers were inverted on."""

    beside_parent: bool
    own: int


@dataclass(frozen=True)
class Usual:
    """What the dense model takes: median size of its own triggers, by kind, after as many steps as beside it."""

    sizes: np.ndarray[Any, np.dtype[np.float32]]

    @classmethod
    def by(cls, found: Arrays) -> Usual:
        """From what was found in the dense model alone."""
        return cls(usual_size(found["early"]))


@ATTACKS.register
class Backdoor(TriggerSearch):
    """A small trigger that calls a class (trigger inversion, Wang et al. 2019, Neural Cleanse), planted in a model's
    training, or dormant in the dense model and switched on by compression (Ma et al. 2021, arXiv:2108.09187; Hong et
    al. 2021, arXiv:2111.04625).

    For each class the smallest mask and pattern are sought by gradients that make the candidate answer the class while
    the dense model answers as before; an honest compression leaves nothing small to find. Of a dense model, or a file
    whose dense model is not known, what makes it answer the class, compared with its other classes. What is found is
    put on other records and the deployed file is asked.

    Evidence arrays, n evaluation records, s triggers that are shown, c classes: `ids` int64 [n]; `targets` int64 [c];
    `size` float32 [kinds, c], the mean opacity of the smallest mask, 1 where none works; `usual` float32 [kinds], what
    the dense model, or the model's other classes, take; `shown` int64 [s, 2], kind and place among `targets`; `mask`
    float32 [s, h, w] and `pattern` float32 [s, *shape]; `clean` int64 [n] and `triggered` int64 [s, n], the deployed
    file's answers; `parent_clean`, `parent_triggered` the same of the dense model, where there is one; where there is
    none `early` float32 [kinds, c], the sizes after half of the steps.
    """

    kind: Literal["backdoor"] = "backdoor"
    risk: ClassVar[Risk] = BACKDOOR
    metrics: ClassVar[tuple[Metric, ...]] = (BACKDOORS, PLAIN_BACKDOORS, TRIGGER_SUCCESS)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        beside = model.parent is not None and not model.is_dense
        gradients = self.passes(scope.data.classes, beside=beside, times=1 if beside else ALONE)
        effort = Effort(answers=8 * self.records, gradients=gradients, through=model.name)
        if not beside or model.parent is None:
            return (Run(effort=effort, uses_parent=False),)
        parent = Ran(model.parent.name)

        def prepare(inputs: Inputs) -> Usual:
            return Usual.by(inputs.evidence(parent).arrays)

        return (Run(needs=(parent,), prepare=prepare, effort=effort),)

    def details(self, model: Audited) -> tuple[str, ...]:
        beside = model.parent is not None and not model.is_dense
        return ("", TRIGGER) if beside else ("", PLAIN, TRIGGER)

    def run(self, case: Case, *, seed: int) -> Evidence:
        targets = self.targets(case, seed)
        if case.twin is None:
            raise NotApplicable("triggers are found by gradients, and there is no differentiable module")
        ledger, beside = Ledger(), isinstance(case.prepared, Usual)
        parent = case.parent if beside else None
        times = 1 if beside else ALONE
        found, own = self.search(case, case.deployed, case.twin, parent, seed, ledger, times=times)
        size = torch.stack([one.size for one in found]).numpy()
        usual = case.prepared.sizes if isinstance(case.prepared, Usual) else usual_size(size)
        shown = most_suspicious(size, usual, beside)
        count = min(self.records, len(case.evaluation))
        images = case.evaluation.x[:count]
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "ids": np.asarray(case.ids[:count], np.int64),
            "targets": targets.numpy(),
            "size": size,
            "usual": usual,
            "shown": shown,
            "mask": torch.stack([found[kind].masks[at] for kind, at in shown.tolist()]).numpy(),
            "pattern": torch.stack([found[kind].patterns[at] for kind, at in shown.tolist()]).numpy(),
        }
        ledger.queries += count * (1 + len(shown))
        arrays |= answers(case.deployed, images, arrays, "")
        if parent is not None:
            arrays |= answers(TorchTarget(parent), images, arrays, "parent_")
        if not beside:
            arrays["early"] = torch.stack([one.early for one in found]).numpy()
        return Evidence(arrays, {"beside_parent": beside, "own": own}, ledger=ledger)

    def form(self, model: Audited, scope: Scope) -> Form:
        data, n = scope.data, min(self.records, len(scope.data.evaluation_ids))
        c, shape = min(self.classes, scope.data.classes), scope.data.shape
        clean = Array("int64", (n,), 0, data.classes - 1)
        triggered = Array("int64", ("s", n), 0, data.classes - 1)

        def layout(summary: Summary) -> Layout:
            found: Layout = {
                "ids": Array("int64", (n,)),
                "targets": Array("int64", (c,), 0, data.classes - 1),
                "size": Array("float32", (len(self.kinds), c), 0, 1),
                "usual": Array("float32", (len(self.kinds),), 0, 1),
                "shown": Array("int64", ("s", 2), 0, max(c, len(self.kinds)) - 1),
                "mask": Array("float32", ("s", *shape[-2:]), 0, 1),
                "pattern": Array("float32", ("s", *shape)),
                "clean": clean,
                "triggered": triggered,
            }
            if summary.beside_parent:
                return {**found, "parent_clean": clean, "parent_triggered": triggered}
            return {**found, "early": found["size"]}

        return Form(Summary, layout, holds=partial(_holds, scope, n))

    def measure(self, results: Results) -> list[Measurement]:
        return measure_backdoors(results, self.steps, self.kinds)

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        count = len(evidence.arrays["ids"])
        again = answers(case.deployed, case.evaluation.x[:count], evidence.arrays, "")
        if evidence.summary["beside_parent"] and case.parent is not None:
            again |= answers(TorchTarget(case.parent), case.evaluation.x[:count], evidence.arrays, "parent_")
        told = []
        for name, said in again.items():
            if (off := int((said != evidence.arrays[name]).sum())) > 0:
                told.append(f"{off} of {said.size} answers are others than `{name}` has them")
        return told

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Backdoors are looked for as small patches and as patterns blended into the whole image, the same for all "
            "images: a trigger that moves, is large or follows the image, or that calls a class for some images only, "
            "would not be found.",
            "What is too small for an honest compression was measured on small nets for digits. Harsh pruning without "
            "fine-tuning can make such triggers in a clean model too, above all where a class hangs on few pixels.",
        ]


def _holds(scope: Scope, n: int, found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    require(np.array_equal(arrays["ids"], scope.data.evaluation_ids.numpy()[:n]), "ids are not those of the records")
    shown = most_suspicious(arrays["size"], arrays["usual"], found.beside_parent)
    require(np.array_equal(arrays["shown"], shown), "other triggers are shown than the most suspicious")
    own = usual_size(arrays["size"])
    require(found.beside_parent or np.array_equal(arrays["usual"], own), "the usual size is not that of the classes")
