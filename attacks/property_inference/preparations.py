"""The shared work of property inference: models trained at each share, and what they tell once compressed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...compression.recipe import Recipe
from ...targets.errors import failing_as_not_applicable
from ...targets.form import Array, Count, Document, Form, Share
from ...targets.model import TorchTarget
from ...targets.steps import kept, pulse
from ...targets.technique import Technique
from ..effort import Effort, retraining
from ..membership.population import PopulationPlan
from ..membership.preparations import ShadowModels
from ..membership.signals import phi_of, replay, settled
from ..preparation import Inputs, Need, Preparation, Prepared, Scope, Trained
from ..structure.shipped import weights_of
from .shares import Question, asked_of
from .telling import of_weights

Arrays = dict[str, np.ndarray[Any, Any]]


class About(Document):
    """Args:
    words: of the property; size: records of each sample; of: of the audited model's training.
    shares: that were asked about; truth: the property's share among the training records.
    """

    words: str
    size: Count
    of: Count
    shares: tuple[Share, ...]
    truth: Share


@dataclass(frozen=True)
class ModelsAtShares(ShadowModels):
    """Models [first, last), trained as the dense model was. Arrays: `<model>/<parameter>`."""

    phase: ClassVar[str] = "property"
    question: Question

    @property
    def name(self) -> str:
        return f"shares/{self.parent.name}/{told_apart(asdict(self.question))}/{self.first}"

    @property
    def words(self) -> str:
        return f"training models {self.first + 1} to {self.last} at shares of a property, as {self.parent.name} was"

    @property
    def identity(self) -> Any:
        return [asdict(self.question), *super().identity]

    def population(self, scope: Scope) -> PopulationPlan:
        return self.question.settled(scope.data).plan(scope.data, scope.seed)

    def trained(self, inputs: Inputs) -> list[nn.Module]:
        """The models; `inputs` has what was prepared."""
        return list(self.modules(inputs, range(self.first, self.last)).values())


@dataclass(frozen=True)
class ToldAtShares(Preparation):
    """What the models, compressed by the recipe as the candidate was, tell.

    Arrays, for k models: `phi` float32 [k, a], margins on the attacker's records; `weights` float64 [k, f], see
    `telling.of_weights`. Document: `About`.
    """

    phase: ClassVar[str] = "property"
    question: Question
    recipe: Recipe | None
    chunks: tuple[ModelsAtShares, ...]

    @property
    def name(self) -> str:
        how = "dense" if self.recipe is None else told_apart(self.recipe.model_dump(mode="json"))
        return f"told/{self.chunks[0].parent.name}/{told_apart(asdict(self.question))}/{how}"

    @property
    def words(self) -> str:
        how = "" if self.recipe is None else f", compressed ({self.recipe.phrase})"
        return f"asking the models trained at shares of a property{how}"

    @property
    def identity(self) -> Any:
        return [asdict(self.question)]

    @property
    def effort(self) -> Effort:
        trainings = retraining(self.recipe, self.chunks[0].parent.trainer)
        return Effort(seconds=0.2 * self.question.count, trainings=trainings * self.question.count)

    @property
    def techniques(self) -> tuple[Technique, ...]:
        return () if self.recipe is None else (self.recipe,)

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.chunks

    def compute(self, inputs: Inputs) -> Prepared:
        data, recipe = inputs.scope.data, self.recipe
        shares = self.question.settled(data)
        plan, bounds = shares.plan(data, inputs.scope.seed), data.bounds
        asked = data.attacker.take(torch.arange(asked_of(data)))

        def told(chunk: ModelsAtShares, recipe: Recipe | None) -> Arrays:
            modules = chunk.trained(inputs)
            if recipe is not None:
                modules = replay(plan, modules, first=chunk.first, recipe=recipe, bounds=bounds)
            phi = np.stack([phi_of(TorchTarget(one), asked) for one in modules])
            return {"phi": phi, "weights": np.stack([of_weights(weights_of(one)) for one in modules])}

        found = list[Arrays]()
        with failing_as_not_applicable("the models trained at shares cannot be compressed as the candidate was"):
            if recipe is not None:
                recipe = settled(plan, self.chunks[0].trained(inputs)[0], recipe, bounds)
            for chunk in self.chunks:
                pulse("model", chunk.first, self.question.count)
                work = partial(told, chunk, recipe)
                trains = recipe is not None and recipe.trains
                found.append(kept(f"models from {chunk.first}", work) if trains else work())
        assert data.members is not None, "declared only where there are training records"
        about = About(
            words=shares.having.words,
            size=int(plan.inside[0].sum()),
            of=len(data.members),
            shares=shares.shares,
            truth=float(shares.having.of(data.members).double().mean()),
        )
        arrays = {name: np.concatenate([one[name] for one in found]) for name in ("phi", "weights")}
        return Prepared(arrays, about.model_dump(mode="json"))

    def form(self, scope: Scope) -> Form:
        k = self.question.count
        told = Array("float32", (k, asked_of(scope.data)), finite=False)
        return Form(About, {"phi": told, "weights": Array("float64", (k, None), finite=False)})


def told_by_shares(scope: Scope, parent: Trained, recipe: Recipe | None, question: Question) -> ToldAtShares:
    """What models like a parent's tell, trained in pieces of work as large as are trained side by side."""
    size, count = parent.side_by_side(torch.device(scope.device)), question.count
    chunks = (ModelsAtShares(parent, at, min(at + size, count), question) for at in range(0, count, size))
    return ToldAtShares(question, recipe, tuple(chunks))


def told_apart(value: Any) -> str:
    """What tells work with one setting from that with another, in a name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
