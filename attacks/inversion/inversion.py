"""Model inversion: an input rebuilt for each class, by gradients and by scores alone, and whom it resembles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.errors import NotApplicable
from ...targets.form import Array, Arrays, Document, Form, Layout, Share, require
from ...targets.model import TorchTarget
from ..access import Flag, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..evasion.likeness.distances import distances
from ..evasion.likeness.pictures import drawn
from ..measurement import Measurement, Picture
from ..preparation import Audited, Basis, Inputs, Ran, Results, Scope
from ..risk import Metric, Risk
from .judged import Judged, judged, member_is_nearest, nearness
from .measure import CONTROLS, FOUND, MEAN, OTHER, RECOGNISED_DETAIL, SINGLED_DETAIL, WHITE_BOX, measure_inversion
from .preparations import Independent, space_of
from .rebuild import by_gradients, by_scores
from .risk import INVERSION, NEAR, RECOGNISED, SINGLED_OUT
from .space import Space

SAME = 1e-6  # of two computations of one distance


class Summary(Document):
    """`Evidence.summary`: the ways that ran, and the accuracy of the network that recognises what is rebuilt."""

    found: tuple[Literal["white-box", "scores"], ...]
    judge_accuracy: Share


@dataclass(frozen=True, eq=False)
class InversionCase:
    """What the attack finds in `Case.prepared`.

    Args:
        records: gives those of `about`; judge: gives the network that recognises what is rebuilt.
        controls: [c, *shape] by name, rebuilt without the model.
    """

    about: Judged
    space: Space
    known: Records
    records: Callable[[], Records]
    judge: Callable[[], nn.Module]
    judge_accuracy: float
    controls: Mapping[str, Tensor]


@ATTACKS.register
class Inversion(Attack):
    """For each class an input rebuilt from the model (Fredrikson et al. 2015, doi:10.1145/2810103.2813677): gradient
    ascent on the class's margin through the twin, with total variation and the distance from what the attacker owns as
    prior; and the same without gradients, by the deployed model's scores (Ilyas et al. 2018, arXiv:1804.08598).

    That it looks like the class is what a model is for. What counts is whether it is nearer to the members of the class
    than to records of the class that the model never saw; beside it, what is rebuilt without the model: the mean of the
    attacker's records, and the same from a network trained on those. That network also says what it recognises.

    Evidence, of the n records and c classes of `Judged`, for each way f of "white-box" and "scores": `ids`, `label`
    int64 [n], `is_member` bool [n], `classes` int64 [c]; `rebuilt/f` float32 [c, *shape]; `near/f` float64 [n], see
    `nearness`; `nearest/f` bool [c], a member is nearest; `recognised/f` bool [c]; `answer/f` int64 [c] and `sure/f`
    float32 [c], what the deployed model answers and how sure it is of the class. Of the two controls `near/...` and
    `nearest/...` alone.
    """

    kind: Literal["inversion"] = "inversion"
    risk: ClassVar[Risk] = INVERSION
    metrics: ClassVar[tuple[Metric, ...]] = (NEAR, SINGLED_OUT, RECOGNISED)

    classes: int = Field(32, ge=1, le=10_000, description="that inputs are rebuilt for, at most; drawn by the seed")
    starts: int = Field(4, ge=1, le=1000, description="searches by gradients for each class, the best of which counts")
    steps: int = Field(100, ge=1, le=100_000, description="of each search")
    pairs: int = Field(10, ge=1, le=10_000, description="of queries for each step and class, by scores alone")
    prior: float = Field(3.0, ge=0, le=1e6, description="weight of the prior, beside margins over their spread")

    def unfit(self, scope: Scope) -> str | None:
        data = scope.data
        if data.structure.tokens:
            return "token inputs"
        if data.members is None:
            return "no training records"
        return None if len(judged(data, self.classes, scope.seed).classes) else "no class with records on every side"

    def usual(self, data: Data) -> bool:
        return data.members is not None and not data.structure.tokens

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        if self.unfit(scope) is not None:
            return ()
        count = len(judged(scope.data, self.classes, scope.seed).classes)
        effort = Effort(
            answers=2.0 * count * self.pairs * self.steps,
            gradients=count * self.starts * self.steps,
            through=model.name,
        )
        independent = self._independent()
        prepare = partial(_prepared, independent)
        return (Run(needs=(independent,), prepare=prepare, uses_parent=False, effort=effort),)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", SINGLED_DETAIL, RECOGNISED_DETAIL)

    def reads(self, model: Audited, scope: Scope) -> tuple[Ran, ...]:
        names = (model.name, *model.baselines) if self.runs(model, scope) else ()
        return tuple(Ran(name) for name in names)

    def form(self, model: Audited, scope: Scope) -> Form:
        if self.unfit(scope) is not None:
            return Form()
        about = judged(scope.data, self.classes, scope.seed)
        n, c = len(about.ids), len(about.classes)

        def layout(summary: Summary) -> Layout:
            every = (*summary.found, *CONTROLS)
            found = {name: Array("int64", (n,)) for name in ("ids", "label")}
            found |= {"is_member": Array("bool", (n,)), "classes": Array("int64", (c,))}
            found |= {f"near/{name}": Array("float64", (n,)) for name in every}
            found |= {f"nearest/{name}": Array("bool", (c,)) for name in every}
            for name in summary.found:
                found[f"rebuilt/{name}"] = Array("float32", (c, *scope.data.shape))
                found[f"recognised/{name}"] = Array("bool", (c,))
                found[f"answer/{name}"] = Array("int64", (c,), 0, scope.data.classes - 1)
                found[f"sure/{name}"] = Array("float32", (c,), 0, 1)
            return found

        def holds(summary: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(summary.found in ((WHITE_BOX, *FOUND[1:]), FOUND[1:]), "its ways are none that there are")
            for name in ("ids", "label", "is_member", "classes"):
                require(np.array_equal(arrays[name], getattr(about, name)), f"{name} are others than those of the data")

        return Form(Summary, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        given = case.prepared
        if not isinstance(given, InversionCase):
            raise NotApplicable("not applicable: inputs are rebuilt for classes of training records that are no tokens")
        ledger, classes = Ledger(), torch.from_numpy(given.about.classes)
        found: dict[str, Tensor] = {}
        if case.twin is not None:
            found[WHITE_BOX] = by_gradients(
                case.twin, given.space, given.known.y, classes,
                starts=self.starts, steps=self.steps, weight=self.prior, seed=seed, ledger=ledger,
            )  # fmt: skip
        found["scores"] = by_scores(
            case.deployed, given.space, given.known.y, classes,
            steps=self.steps, pairs=self.pairs, weight=self.prior, seed=seed, ledger=ledger,
        )  # fmt: skip
        arrays: dict[str, np.ndarray[Any, Any]] = {
            name: getattr(given.about, name) for name in ("ids", "label", "is_member", "classes")
        }
        arrays |= {f"rebuilt/{name}": one.numpy() for name, one in found.items()}
        arrays |= _resemblance({**found, **given.controls}, given)
        for name, one in found.items():
            logits = case.deployed.logits(one).cpu()
            ledger.queries += len(one)
            arrays[f"answer/{name}"] = logits.argmax(1).numpy()
            sure = logits.double().softmax(1).gather(1, classes[:, None])[:, 0]
            arrays[f"sure/{name}"] = sure.nan_to_num(0.0).float().numpy()
            seen = TorchTarget(given.judge()).logits(one).argmax(1)
            arrays[f"recognised/{name}"] = (seen == classes).numpy()
        flags = {} if case.twin is not None else {"scores": [Flag.NO_WHITE_BOX.value]}
        summary = Summary(found=tuple(found), judge_accuracy=given.judge_accuracy)
        return Evidence(arrays, summary.model_dump(mode="json"), flags=flags, ledger=ledger)

    def measure(self, results: Results) -> list[Measurement]:
        return measure_inversion(results, self.unfit(results.scope), self.steps * self.pairs * 2)

    def pictures(self, results: Results) -> tuple[Picture, ...]:
        """The classes whose rebuilt inputs are nearest to a member, with that member."""
        evidence, data = results.evidence(Ran(results.model.name)), results.scope.data
        if evidence is None or data.members is None:
            return ()
        arrays, headline = evidence.arrays, evidence.summary["found"][0]
        near = np.where(arrays["is_member"], arrays[f"near/{headline}"], -np.inf)
        rows = [int(np.where(arrays["label"] == one, near, -np.inf).argmax()) for one in arrays["classes"]]
        order = np.argsort([-near[row] for row in rows], kind="stable")
        ids = arrays["ids"][[rows[at] for at in order]]
        rebuilt = torch.from_numpy(np.array(arrays[f"rebuilt/{headline}"])[order])
        nearest = data.members.take(torch.from_numpy(np.array(ids)))
        apart = distances(nearest.x, rebuilt, data.bounds)
        return drawn(nearest, rebuilt, ids, apart, data, words=("nearest member", "rebuilt"))

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        given, wrong = case.prepared, list[str]()
        if not isinstance(given, InversionCase):
            return wrong
        found = {
            name: torch.from_numpy(np.array(evidence.arrays[f"rebuilt/{name}"])) for name in evidence.summary["found"]
        }
        for name, one in found.items():
            if not np.array_equal(case.deployed.logits(one).argmax(1).cpu().numpy(), evidence.arrays[f"answer/{name}"]):
                wrong.append(f"it answers what was rebuilt ({name}) otherwise")
        for name, array in _resemblance({**found, **given.controls}, given).items():
            if not np.allclose(array, evidence.arrays[name], rtol=SAME, atol=SAME):
                wrong.append(f"{name} is not how near the records are")
        return wrong

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        given = basis.prepared()
        if not isinstance(given, InversionCase):
            return []
        arrays = evidence.arrays
        return [
            f"whether a member is nearest ({name}) does not follow from how near the records are"
            for name in (*evidence.summary["found"], *CONTROLS)
            if not np.array_equal(member_is_nearest(arrays[f"near/{name}"], given.about), arrays[f"nearest/{name}"])
        ]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Model inversion rebuilds one input for each class by simple priors; generative priors trained on public "
            "records of the same kind rebuild better ones, which are not tried."
        ]

    def _independent(self) -> Independent:
        return Independent(self.classes, self.starts, self.steps, self.prior)


def _prepared(independent: Independent, inputs: Inputs) -> InversionCase:
    data, prepared = inputs.scope.data, inputs.prepared(independent)
    about, space = judged(data, independent.classes, inputs.scope.seed), space_of(data)
    known = Records(space.known, data.attacker.y[: len(space.known)])
    means = [space.known[known.y == one].mean(0) for one in about.classes.tolist()]
    return InversionCase(
        about,
        space,
        known,
        partial(about.records, data),
        partial(independent.network, prepared, data),
        float(prepared.document["accuracy"]),
        {MEAN: torch.stack(means), OTHER: torch.from_numpy(np.array(prepared.arrays["rebuilt"]))},
    )


def _resemblance(rebuilt: Mapping[str, Tensor], given: InversionCase) -> dict[str, np.ndarray[Any, Any]]:
    """`near/...` and `nearest/...` of what was rebuilt, by name."""
    x, found = given.records().x, dict[str, np.ndarray[Any, Any]]()
    for name, one in rebuilt.items():
        near = nearness(one, given.space, given.known.y, x, given.about)
        found |= {f"near/{name}": near, f"nearest/{name}": member_is_nearest(near, given.about)}
    return found
