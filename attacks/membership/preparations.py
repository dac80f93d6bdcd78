"""The shared work of membership inference: shadow models, and the blind baseline."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...compression.recipe import Recipe
from ...targets.data.data import Data
from ...targets.form import Array, Document, Form, Layout
from ...targets.seeds import derive
from ...targets.technique import Technique
from ...training.architecture import weights_layout
from ..effort import HARDENING, Effort
from ..preparation import Audited, Inputs, Preparation, Prepared, Scope, Trained
from .blind import blind_scores
from .population import PopulationPlan, plan_population

FEWEST = 2  # shadow models that most attacks can use: each record is in one of them and not in the other


def population_of(scope: Scope) -> PopulationPlan:
    """The attacked records, and who is inside which shadow."""
    return _population(scope.data, max(scope.training_free, scope.trained), scope.seed)


@lru_cache(maxsize=1)  # it copies all records that shadows are trained on
def _population(data: Data, shadows: int, seed: int) -> PopulationPlan:
    return plan_population(data, shadows, seed=seed)


def shadow_count(scope: Scope, parent: Trained | None, recipe: Recipe | None) -> int:
    """Training-free replays on the plain model's shadows are cheap; everything that trains gets fewer."""
    if parent is None:
        return 0
    costly = parent.hardened is not None or (recipe is not None and recipe.trains)
    return scope.trained if costly else scope.training_free


def shadow_counts(model: Audited, scope: Scope) -> tuple[int, int]:
    """How many shadows compressed as the model is, and how many uncompressed ones, its attacker has."""
    return shadow_count(scope, model.parent, model.recipe), shadow_count(scope, model.parent, None)


def enough_for_all(scope: Scope) -> int:
    """How many shadows every model has that has any: with more on one side a change would be theirs.

    Models for which the plan trains fewer than `FEWEST` have none, and take none from the others.
    """
    return min((count for count in (scope.training_free, scope.trained) if count >= FEWEST), default=0)


@dataclass(frozen=True)
class ShadowModels(Preparation):
    """The shadow models [first, last) of a parent's population, trained as the parent was.

    They are as many as are trained side by side: one, where they are trained one after the other, so that workers share
    them and a run that is killed loses one training.

    Arrays: `<shadow>/<parameter>`.
    """

    phase: ClassVar[str] = "shadows"
    parent: Trained
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"shadows/{self.parent.name}/{self.first}"

    @property
    def words(self) -> str:
        which = f"model {self.first + 1}" if self.last - self.first == 1 else f"models {self.first + 1} to {self.last}"
        return f"training shadow {which}, as {self.parent.name} was trained"

    @property
    def identity(self) -> Any:
        return [self.parent.architecture.name, self.parent.trainer.identity, self.first, self.last]

    @property
    def effort(self) -> Effort:
        return Effort(trainings=(self.last - self.first) * (1.0 if self.parent.hardened is None else HARDENING))

    @property
    def techniques(self) -> tuple[Technique, ...]:
        return () if self.parent.hardened is None else (self.parent.hardened,)

    def population(self, scope: Scope) -> PopulationPlan:
        """Who is trained on what."""
        return population_of(scope)

    def compute(self, inputs: Inputs) -> Prepared:
        models = self.population(inputs.scope).fit(
            self.parent.trainer, self.parent.architecture, first=self.first, last=self.last, device=inputs.device
        )
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for position, module in enumerate(models, self.first):
            state = module.state_dict().items()
            arrays |= {f"{position}/{name}": tensor.detach().cpu().numpy() for name, tensor in state}
        return Prepared(arrays)

    def modules(self, inputs: Inputs, wanted: Iterable[int]) -> dict[int, nn.Module]:
        """Those of the wanted shadows that are among these, by number; to be asked, not to be trained."""
        found, here = dict[int, nn.Module](), sorted({*wanted} & {*range(self.first, self.last)})
        if not here:
            return found
        arrays, blank = inputs.prepared(self).arrays, self.parent.architecture.blank()
        for shadow in here:
            module = copy.deepcopy(blank)
            names = module.state_dict()
            module.load_state_dict({name: torch.from_numpy(np.array(arrays[f"{shadow}/{name}"])) for name in names})
            found[shadow] = module.to(inputs.device).eval().requires_grad_(False)
        return found

    def form(self, scope: Scope) -> Form:
        def layout(document: Any) -> Layout:
            own = weights_layout(self.parent.architecture)
            return {f"{one}/{name}": form for one in range(self.first, self.last) for name, form in own.items()}

        return Form(Document, layout)


@dataclass(frozen=True)
class BlindScores(Preparation):
    """Scores of a classifier that sees the attacked records and never a model.

    Arrays: `scores`, float64 [n].
    """

    phase: ClassVar[str] = "membership"

    @property
    def name(self) -> str:
        return "blind"

    @property
    def words(self) -> str:
        return "how well members are told without any model"

    @property
    def identity(self) -> Any:
        return []

    def compute(self, inputs: Inputs) -> Prepared:
        population = population_of(inputs.scope)
        seed = derive(inputs.scope.seed, "blind")
        return Prepared({"scores": blind_scores(population.targets, population.is_member, seed=seed)})

    def form(self, scope: Scope) -> Form:
        return Form(Document, lambda _: {"scores": Array("float64", (population_of(scope).attacked,))})
