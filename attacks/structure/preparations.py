"""What the structures of shadow models say, each compressed as the candidate was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from ...compression.chain import Chain, flat
from ...compression.recipe import Recipe
from ...targets.form import Array
from ...targets.model import TorchTarget
from ..membership.population import PopulationPlan
from ..membership.preparations import population_of
from ..membership.replayed import LookedAtShadows
from ..membership.signals import target_signals
from ..preparation import Inputs, Scope
from .infer import PLACES, book, structure_of
from .shipped import filled, weights_of

Kind = Literal["mask", "book"]


def sees_of(recipe: Recipe | None) -> Kind | None:
    """What of a candidate made so is looked at: which weights are zero, or which values they share; None: neither."""
    steps = [] if recipe is None else flat((recipe,))
    if any(step.kind == "prune" and getattr(step, "structure", "") in ("weights", "n:m") for step in steps):
        return "mask"
    return "book" if steps and steps[-1].kind == "share" and not isinstance(recipe, Chain) else None


def told_by(module: nn.Module, sees: Kind, plan: PopulationPlan) -> np.ndarray[Any, Any]:
    """Of a module with nothing but weights: margins float32 [n] of its mask on the attacked records; its book [f]."""
    if sees == "book":
        return book(module)
    return target_signals(TorchTarget(structure_of(module, "mask")), plan)


@dataclass(frozen=True)
class StructuresOfShadows(LookedAtShadows):
    """As `SignalsOfShadows`, of the structures alone.

    Arrays: `inside` bool [k, n]; `seen`, by `told_by`: float32 [k, n] of masks, float64 [k, f] of code books.
    """

    @property
    def sees(self) -> Kind:
        return sees_of(self.recipe) or "mask"

    @property
    def name(self) -> str:
        return super().name.replace("signals/", "structures/", 1)

    @property
    def words(self) -> str:
        return f"{'masks' if self.sees == 'mask' else 'code books'} of {self.which}"

    def seen(self, modules: Iterable[nn.Module], inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
        plan, blank = population_of(inputs.scope), self.parent.architecture.blank().to(inputs.device)
        return {"seen": np.stack([told_by(filled(blank, weights_of(one)), self.sees, plan) for one in modules])}

    def telling(self, scope: Scope, shadows: int) -> dict[str, Array]:
        if self.sees == "mask":
            return {"seen": Array("float32", (shadows, population_of(scope).attacked), finite=False)}
        layers = sum(one.dim() > 1 for one in self.parent.architecture.blank().parameters())
        return {"seen": Array("float64", (shadows, PLACES * layers), finite=False)}
