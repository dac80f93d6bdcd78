"""Adversarial inputs that are made on one model and tried on another: on a parent, on a candidate, and both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ....targets.errors import NotApplicable
from ....targets.form import Array, Document, Form
from ....targets.seeds import derive
from ....training.ball import Ball
from ...effort import Effort
from ...preparation import Deployed, Inputs, Need, Preparation, Prepared, Scope, Weights
from ..black_box.transfer import replayed
from ..gradient.pgd import CRAFT_STEPS, craft
from .radii import Radii


class Crafted(Preparation):
    """Adversarial inputs made on one model, which others are asked.

    Arrays: by the `repr` of an epsilon, float32 [records, *shape].
    """

    phase: ClassVar[str] = "evasion"
    radii: Radii
    records: int

    @property
    def identity(self) -> Any:
        return [*self.sharing, self.records]

    def form(self, scope: Scope) -> Form:
        inputs = Array("float32", (min(self.records, len(scope.data.evaluation_ids)), *scope.data.shape))
        return Form(Document, {f"{epsilon!r}": inputs for epsilon in self.epsilons} or {"*": inputs})

    @property
    def epsilons(self) -> tuple[float, ...]:
        """At which it is crafted; none as long as they are still to be chosen."""
        return self.radii.epsilons

    def crafted(self, inputs: Inputs, module: nn.Module, epsilons: tuple[float, ...]) -> Prepared:
        data = inputs.scope.data
        records = data.evaluation.take(torch.arange(min(self.records, len(data.evaluation))))
        seed = derive(inputs.scope.seed, "transfer")
        found = craft(module, records, epsilons, self.radii.norm, data.bounds, seed=seed)
        return Prepared(arrays={f"{epsilon!r}": x.cpu().numpy() for epsilon, x in found.items()})


@dataclass(frozen=True)
class CraftedOnParent(Crafted):
    """Made on a dense model at every epsilon, for all its candidates."""

    parent: str
    radii: Radii
    records: int

    @property
    def name(self) -> str:
        epsilons = "-".join(f"{epsilon!r}" for epsilon in self.radii.epsilons) or "auto"
        return f"transfer/{self.parent}/{self.radii.norm}-{epsilons}-{self.records}"

    @property
    def words(self) -> str:
        return f"inputs that fool {self.parent}, to be tried on its candidates ({self.records} records)"

    @property
    def sharing(self) -> Any:
        return [self.radii.norm, self.radii.epsilons]

    @property
    def effort(self) -> Effort:
        return Effort(gradients=CRAFT_STEPS * len(self.radii.epsilons) * self.records)

    @property
    def needs(self) -> tuple[Need, ...]:
        return Weights(self.parent), *self.radii.needs

    def compute(self, inputs: Inputs) -> Prepared:
        return self.crafted(inputs, inputs.weights(self.parent), self.radii.resolved(inputs)[1])


@dataclass(frozen=True)
class CraftedOnCandidate(Crafted):
    """Made on a model at the gate's epsilon, for those it is compared with."""

    label: str
    candidate: str
    radii: Radii
    records: int

    @property
    def name(self) -> str:
        return f"crafted/{self.label}/{self.candidate}"

    @property
    def words(self) -> str:
        return f"inputs that fool {self.candidate}, to be tried on what it comes from ({self.records} records)"

    @property
    def sharing(self) -> Any:
        return ["crafted", self.radii.norm, self.radii.gate]

    @property
    def epsilons(self) -> tuple[float, ...]:
        return () if self.radii.gate is None else (self.radii.gate,)

    @property
    def effort(self) -> Effort:
        return Effort(gradients=CRAFT_STEPS * self.records, through=self.candidate)

    @property
    def needs(self) -> tuple[Need, ...]:
        return Deployed(self.candidate), *self.radii.needs

    def compute(self, inputs: Inputs) -> Prepared:
        twin = inputs.twin(self.candidate)
        if twin is None:
            raise NotApplicable("nothing can be crafted on it: it has no differentiable twin")
        return self.crafted(inputs, twin, (self.radii.resolved(inputs)[0],))


@dataclass(frozen=True)
class ReplayedBothWays(Preparation):
    """Which records the inputs crafted on each of two models, at the gate's epsilon, fool on the other.

    Arrays `on_candidate` and `on_baseline`, bool [n] (clean errors count): the one part of an attack that a model and
    the one it came from can both face alike. Both are crafted by the same steps from the same starts.
    """

    phase: ClassVar[str] = "evasion"
    label: str
    candidate: str
    baseline: str
    radii: Radii
    records: int

    @property
    def name(self) -> str:
        return f"replay/{self.label}/{self.candidate}/{self.baseline}"

    @property
    def words(self) -> str:
        return f"what fools {self.candidate} tried on {self.baseline}, and back ({self.records} records)"

    @property
    def identity(self) -> Any:
        return [*self.sharing, self.records]

    @property
    def sharing(self) -> Any:
        return ["replay", self.radii.norm, self.radii.gate]

    @property
    def effort(self) -> Effort:
        return Effort(answers=2 * self.records)

    @property
    def _crafted(self) -> tuple[CraftedOnParent, CraftedOnCandidate]:
        return (
            CraftedOnParent(self.baseline, self.radii, self.records),
            CraftedOnCandidate(self.label, self.candidate, self.radii, self.records),
        )

    @property
    def needs(self) -> tuple[Need, ...]:
        return Deployed(self.candidate), Deployed(self.baseline), *self._crafted, *self.radii.needs

    def compute(self, inputs: Inputs) -> Prepared:
        gate, _ = self.radii.resolved(inputs)
        theirs, mine = (torch.from_numpy(np.array(inputs.prepared(one).arrays[f"{gate!r}"])) for one in self._crafted)
        data = inputs.scope.data
        records = data.evaluation.take(torch.arange(min(self.records, len(data.evaluation))))
        ball = Ball(self.radii.norm, gate, records.x, data.bounds)
        asked = {"on_candidate": (self.candidate, theirs), "on_baseline": (self.baseline, mine)}
        return Prepared(
            {
                name: replayed(inputs.deployed(model), adversarial, records, ball).cpu().numpy()
                for name, (model, adversarial) in asked.items()
            }
        )

    def form(self, scope: Scope) -> Form:
        outcomes = Array("bool", (min(self.records, len(scope.data.evaluation_ids)),))
        return Form(Document, {"on_candidate": outcomes, "on_baseline": outcomes})
