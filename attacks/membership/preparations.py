"""The shared work of membership inference: shadow models, what they say of the attacked records, the blind baseline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...compression.recipe import Recipe
from ...targets.data.data import Data
from ...targets.errors import failing_as_not_applicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ...targets.model import TorchTarget
from ...targets.seeds import derive
from ...targets.steps import kept, pulse
from ...targets.technique import Technique
from ...training.architecture import weights_layout
from ..attack import Run
from ..effort import HARDENING, Effort, retraining
from ..preparation import Audited, Inputs, Need, Preparation, Prepared, Scope, Trained
from .blind import blind_scores
from .case import MembershipCase, ShadowSignals
from .population import PopulationPlan, plan_population
from .signals import phi_of, replay, replayed_at_once, settled


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

    def compute(self, inputs: Inputs) -> Prepared:
        models = population_of(inputs.scope).fit(
            self.parent.trainer, self.parent.architecture, first=self.first, last=self.last, device=inputs.device
        )
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for position, module in enumerate(models, self.first):
            state = module.state_dict().items()
            arrays |= {f"{position}/{name}": tensor.detach().cpu().numpy() for name, tensor in state}
        return Prepared(arrays)

    def form(self, scope: Scope) -> Form:
        def layout(document: Any) -> Layout:
            own = weights_layout(self.parent.architecture)
            return {f"{one}/{name}": form for one in range(self.first, self.last) for name, form in own.items()}

        return Form(Document, layout)


@dataclass(frozen=True)
class SignalsOfShadows(Preparation):
    """What each shadow, compressed by the recipe as the candidate was, says of the attacked records.

    Arrays: those of `ShadowSignals`; where the data has records to forget, f of them, none of which any shadow was
    trained on, `forgotten` float32 [k, f], its margins on those.
    """

    phase: ClassVar[str] = "signals"
    parent: Trained
    recipe: Recipe | None
    chunks: tuple[ShadowModels, ...]
    count: int

    @property
    def name(self) -> str:
        how = "dense" if self.recipe is None else _digest(self.recipe.model_dump(mode="json"))[:12]
        return f"signals/{self.parent.name}/{how}"

    @property
    def words(self) -> str:
        how = "" if self.recipe is None else f", compressed ({self.recipe.phrase})"
        return f"asking the shadow models of {self.parent.name}{how}"

    @property
    def identity(self) -> Any:
        return [self.count]

    @property
    def effort(self) -> Effort:
        return Effort(seconds=0.2 * self.count, trainings=self.count * retraining(self.recipe, self.parent.trainer))

    @property
    def techniques(self) -> tuple[Technique, ...]:
        return () if self.recipe is None else (self.recipe,)

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.chunks

    def compute(self, inputs: Inputs) -> Prepared:
        states: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
        for chunk in self.chunks:
            for name, array in inputs.prepared(chunk).arrays.items():
                position, _, parameter = name.partition("/")
                states.setdefault(int(position), {})[parameter] = array
        population, bounds = population_of(inputs.scope), inputs.scope.data.bounds

        at_once = replayed_at_once(self.recipe, self.parent.architecture.blank().to(inputs.device))

        recipe = self.recipe

        def signals(first: int, last: int) -> dict[str, np.ndarray[Any, Any]]:
            modules = [self._module(states[shadow], inputs.device) for shadow in range(first, last)]
            if recipe is not None:
                modules = replay(population, modules, first=first, recipe=recipe, bounds=bounds)
            return self.told(modules, inputs)

        rows: dict[str, list[np.ndarray[Any, Any]]] = {}
        with failing_as_not_applicable("the shadow models cannot be compressed as the candidate was"):
            if recipe is not None:
                recipe = settled(population, self._module(states[0], inputs.device), recipe, bounds)
            for first in range(0, self.count, at_once):
                pulse("shadow", first, self.count)
                last = min(first + at_once, self.count)
                trains = self.recipe is not None and self.recipe.trains
                form = self.telling(inputs.scope, last - first)
                # A part is what was trained together: a smaller stack rounds its sums in another order.
                part = f"shadow {first}" if at_once == 1 else f"shadows {first} to {last - 1}"
                row = kept(part, partial(signals, first, last), form) if trains else signals(first, last)
                for name, array in row.items():
                    rows.setdefault(name, []).append(array)
        told = {name: np.concatenate(arrays) for name, arrays in rows.items()}
        return Prepared({"inside": population.inside[: self.count], **told})

    def told(self, modules: Sequence[nn.Module], inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
        """What is kept of some shadows, compressed: a row each in every array."""
        forgotten = inputs.scope.data.forgotten
        asked = {"phi": population_of(inputs.scope).targets} | ({} if forgotten is None else {"forgotten": forgotten})
        return {name: np.stack([phi_of(TorchTarget(one), of) for one in modules]) for name, of in asked.items()}

    def telling(self, scope: Scope, shadows: int) -> dict[str, Array]:
        """What `told` looks like of so many shadows."""
        forgotten = scope.data.forgotten
        counts = {"phi": population_of(scope).attacked}
        counts |= {} if forgotten is None else {"forgotten": len(forgotten)}
        return {name: Array("float32", (shadows, count), finite=False) for name, count in counts.items()}

    def form(self, scope: Scope) -> Form:
        def holds(document: Any, arrays: Arrays, files: Any) -> None:
            inside = population_of(scope).inside[: self.count]
            require(np.array_equal(arrays["inside"], inside), "inside is not who was inside")

        def layout(document: Any) -> Layout:
            shape = (self.count, population_of(scope).attacked)
            return {"inside": Array("bool", shape), **self.telling(scope, self.count)}

        return Form(Document, layout, holds=holds)

    def _module(self, state: Mapping[str, np.ndarray[Any, Any]], device: torch.device) -> nn.Module:
        module = self.parent.architecture.blank()
        module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
        return module.to(device).eval().requires_grad_(False)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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


def signals_of(scope: Scope, parent: Trained, recipe: Recipe | None) -> SignalsOfShadows:
    """The shadows of a parent, as many as any model that came from it asks for; this one uses the first of them."""
    family = [model for model in scope.models.values() if model.parent is not None and model.parent.name == parent.name]
    most = max(shadow_count(scope, parent, one) for one in [recipe, None, *(model.recipe for model in family)])
    count = shadow_count(scope, parent, recipe)
    size = parent.side_by_side(torch.device(scope.device))
    chunks = [ShadowModels(parent, first, min(first + size, most)) for first in range(0, count, size)]
    return SignalsOfShadows(parent, recipe, tuple(chunks), count)


def membership_run(model: Audited, scope: Scope, *, shadows: int | None = None) -> Run:
    """A run against one model, with every shadow there is or with the first so many."""
    parent = model.parent
    own = None if parent is None else signals_of(scope, parent, model.recipe)
    uncompressed = None if parent is None or model.recipe is None else signals_of(scope, parent, None)
    blind = BlindScores()
    return Run(
        detail=run_detail(model, scope, shadows),
        model=model.name,
        needs=(blind, *(one for one in (own, uncompressed) if one is not None)),
        prepare=partial(_case, own, uncompressed, blind, shadows),
        identity=shadows,
        uses_parent=False,
    )


def run_detail(model: Audited, scope: Scope, shadows: int | None) -> str:
    """What the run with so many shadows is called: nothing for all of them."""
    full = shadows is None or shadows >= shadow_count(scope, model.parent, None)
    return "" if full else f"{shadows}-shadows"


def _case(
    own: SignalsOfShadows | None,
    uncompressed: SignalsOfShadows | None,
    blind: BlindScores,
    shadows: int | None,
    inputs: Inputs,
) -> MembershipCase:
    """What the membership attacker has; without own signals it has no shadow model, and uses the records it owns."""

    def of(signals: SignalsOfShadows | None) -> ShadowSignals | None:
        if signals is None:
            return None
        arrays = inputs.prepared(signals).arrays
        return ShadowSignals(arrays["inside"][:shadows], arrays["phi"][:shadows])

    scores = inputs.prepared(blind).arrays["scores"]
    return population_of(inputs.scope).case(of(own), of(uncompressed), scores)
