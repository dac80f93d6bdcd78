"""Transfer learning: every model as the beginning of one for another task, beside the dense model as such."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from ...targets.data.data import Data
from ...targets.data.further.task import NewTask
from ...targets.data.records import Records
from ...targets.errors import NotApplicable
from ...targets.form import Array, Document, Form, Layout, require
from ..access import Flag, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..evasion.categories import not_pixels
from ..measurement import Measurement
from ..membership.case import ShadowSignals
from ..membership.scoring.pseudo_targets import ENOUGH_SHADOWS
from ..membership.signals import SAME, margins_again
from ..preparation import OTHERWISE, Audited, Basis, Inputs, Results, Scope
from ..risk import Metric, Risk
from ..statistics.power import detectable_auc
from .head_file import opened, with_head
from .measure import MEMBERSHIP, ROBUST, detail_of, measure_transfer
from .risk import TRANSFER, TRANSFER_ACCURACY, TRANSFER_MEMBERSHIP, TRANSFER_ROBUST
from .transfer import FINE_TUNE, WAYS, Beginning, Way, around, asked, judged, probed, scores_of, tuned

NOTHING = "no other task"
BESIDE = 1e-5  # of a feature's range: so far beyond its limits rounding may have put an input


class Summary(Document):
    """`Evidence.summary`: the ways that there are arrays of; whether inputs were attacked."""

    ways: tuple[Way, ...]
    attacked: bool


@ATTACKS.register
class TransferLearning(Attack):
    """What a model is worth, and gives away, as the beginning of a model for another task (`data: {transfer: ...}`).

    Its file is a feature extractor: a linear probe on what enters its last layer replaces that layer, or the whole is
    trained on from there. What came of it is a file again, run as such: its accuracy on records of the other task,
    accuracy under an attack through that file's twin, and membership of the records that it was trained on.

    Evidence arrays, with n evaluation records of the other task, a of them attacked, 2 m asked for membership (m
    members first), k probes of the attacker's: `weight` float32 [classes, features] and `bias` [classes], the probe;
    `inside` bool [k, 2 m] and `margins` float32 [k, 2 m], of the attacker's probes; `file` uint8 [bytes], what was
    fine-tuned. Of each way w: `w/correct` bool [n], `w/phi` float32 [2 m], `w/scores` float64 [2 m], and, where inputs
    are pixels or numbers, `w/robust` bool [a] and `w/crafted` float32 [a, *shape].
    """

    kind: Literal["transfer-learning"] = "transfer-learning"
    risk: ClassVar[Risk] = TRANSFER
    metrics: ClassVar[tuple[Metric, ...]] = (TRANSFER_ACCURACY, TRANSFER_ROBUST, TRANSFER_MEMBERSHIP)

    epsilon: float = Field(0.1, gt=0, le=1, description="L-inf, in units of the bounds")
    records: int = Field(200, ge=10, le=1_000_000, description="evaluation records that are attacked, at most")
    shadows: int = Field(16, ge=4, le=1024, description="probes that the attacker of membership trains")
    fine_tuned: bool = Field(True, description="whether the whole model is trained on as well")

    def unfit(self, scope: Scope) -> str | None:
        return NOTHING if scope.data.transfer is None else None

    def usual(self, data: Data) -> bool:
        return data.transfer is not None

    @property
    def ways(self) -> tuple[Way, ...]:
        return WAYS if self.fine_tuned else WAYS[:1]

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        task = scope.data.transfer
        if task is None:
            return ()
        attacked = 200 * min(self.records, len(task.evaluation))
        passes = attacked * len(self.ways) + FINE_TUNE.epochs * len(task.members) * (len(self.ways) - 1)
        effort = Effort(gradients=passes, seconds=0.2 * self.shadows, through=model.name)
        return (Run(prepare=_task, identity=list(task.class_names), uses_parent=False, effort=effort),)

    def details(self, model: Audited) -> tuple[str, ...]:
        return tuple(detail_of(way, risk) for way in self.ways for risk in ("", ROBUST, MEMBERSHIP))

    def form(self, model: Audited, scope: Scope) -> Form:
        task = scope.data.transfer
        if task is None:
            return Form()
        n, half = len(task.evaluation), min(len(task.members), len(task.evaluation))

        def layout(summary: Summary) -> Layout:
            require(len(set(summary.ways)) == len(summary.ways), "a way is named twice")
            found: dict[str, Array] = {
                "weight": Array("float32", (task.classes, "features")),
                "bias": Array("float32", (task.classes,)),
                "inside": Array("bool", (self.shadows, 2 * half)),
                "margins": Array("float32", (self.shadows, 2 * half)),
            }
            for way in summary.ways:
                found[f"{way}/correct"] = Array("bool", (n,))
                found[f"{way}/phi"] = Array("float32", (2 * half,))
                found[f"{way}/scores"] = Array("float64", (2 * half,))
                if summary.attacked:
                    attacked = min(self.records, n)
                    found[f"{way}/robust"] = Array("bool", (attacked,))
                    found[f"{way}/crafted"] = Array("float32", (attacked, *scope.data.shape))
            return found | ({"file": Array("uint8", ("bytes",))} if "fine-tuned" in summary.ways else {})

        return Form(Summary, layout)

    def run(self, case: Case, *, seed: int) -> Evidence:
        task, start = _given(case)
        head, signals = probed(start, task, self.shadows, seed)
        arrays = {"weight": head.weight, "bias": head.bias, "inside": signals.inside, "margins": signals.phi}
        flags, skipped, done = dict[str, list[str]](), dict[str, str](), list[Way]()
        if (why := not_pixels(case)) is not None:
            skipped[ROBUST] = why
        attacks = why is None
        for way in self.ways:
            try:
                made = (
                    with_head(start.file, head.weight, head.bias) if way == "probe" else tuned(start, head, task, seed)
                )
            except NotApplicable as reason:
                skipped[way] = str(reason)
                continue
            if way == "fine-tuned":
                arrays["file"] = np.frombuffer(made, np.uint8)
            opened_file = start.opened(made) if way == "probe" else start.tuned(made)
            own, doubts = judged(
                opened_file, task, case.bounds.to("cpu"), self.epsilon, self.records, seed, attacks=attacks
            )
            arrays |= {f"{way}/{name}": array for name, array in own.items()}
            arrays[f"{way}/scores"] = scores_of(way, own["phi"], signals)
            flags[f"{way}/{ROBUST}"] = doubts
            done.append(way)
        flags |= {MEMBERSHIP: [Flag.FEW_SHADOWS.value]} if self.shadows < ENOUGH_SHADOWS else {}
        if "fine-tuned" in done:
            flags[f"fine-tuned/{MEMBERSHIP}"] = [Flag.SHADOWS_DIFFER.value]
        summary = Summary(ways=tuple(done), attacked=attacks).model_dump(mode="json")
        return Evidence(arrays, summary, flags, skipped, Ledger(queries=len(task.evaluation) * len(done)))

    def measure(self, results: Results) -> list[Measurement]:
        return measure_transfer(results, self.ways, NOTHING)

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        task, start = _given(case)
        stored, wrong = evidence.arrays, list[str]()
        for way in Summary.model_validate(evidence.summary).ways:
            if way == "probe":
                model = start.opened(with_head(start.file, stored["weight"], stored["bias"])).deployed
            else:
                model = start.tuned(stored["file"].tobytes()).deployed
            labels, told = task.evaluation.y.numpy(), model.logits(task.evaluation.x).argmax(1).cpu().numpy()
            most = max(1, OTHERWISE * len(labels))
            if ((told == labels) != stored[f"{way}/correct"]).sum() > most:
                wrong.append(f"{way}: it classifies other records right")
            wrong += [f"{way}: {one}" for one in margins_again(model, asked(task), stored[f"{way}/phi"])]
            if f"{way}/robust" not in stored:
                continue
            fell, x = ~stored[f"{way}/robust"], torch.from_numpy(np.array(stored[f"{way}/crafted"]))
            low, high = around(task.evaluation.x[: len(x)], case.bounds.to("cpu"), self.epsilon)
            slack = BESIDE * case.bounds.to("cpu").scale
            if ((x < low - slack) | (x > high + slack)).any():
                wrong.append(f"{way}: an input lies further from its record than was allowed")
            held = model.logits(x).argmax(1).cpu().numpy() == labels[: len(x)]
            if (held & fell).sum() > most:
                wrong.append(f"{way}: inputs that fooled it do not")
        return wrong

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        stored, wrong = evidence.arrays, list[str]()
        signals = ShadowSignals(stored["inside"], stored["margins"])
        for way in Summary.model_validate(evidence.summary).ways:
            if not np.allclose(scores_of(way, stored[f"{way}/phi"], signals), stored[f"{way}/scores"], SAME, SAME):
                wrong.append(f"{way}: its scores are not what follows from the margins")
            robust = stored.get(f"{way}/robust")
            if robust is not None and (robust & ~stored[f"{way}/correct"][: len(robust)]).any():
                wrong.append(f"{way}: a record withstands an attack that is wrong without one")
        return wrong

    def power(self, scope: Scope) -> list[str]:
        task = scope.data.transfer
        if task is None:
            return []
        half = min(len(task.members), len(task.evaluation))
        return [
            f"Transfer learning: with {half} members and {half} others of {task.name} a membership AUC below "
            f"{detectable_auc(half, half):.3f} would not be told from guessing."
        ]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Transfer learning is one probe and one fine-tuning of each model: other trainings vary, and so do other "
            "tasks. What is fine-tuned has its weights in floats and is not compressed anew. The attacker of its "
            "members trains probes, not fine-tuned models: it may be underestimated."
        ]


def _task(inputs: Inputs) -> NewTask | None:
    return inputs.scope.data.transfer


def _given(case: Case) -> tuple[NewTask, Beginning]:
    task = case.prepared
    if not isinstance(task, NewTask):
        raise NotApplicable(f"{NOTHING}: name its records under data.transfer")
    here = NewTask(task.name, _here(task.members), _here(task.evaluation), task.class_names)
    return here, Beginning(opened(case.shipped), case.assumptions, tuple(case.evaluation.x.shape[1:]))


def _here(records: Records) -> Records:
    return records.to("cpu")
