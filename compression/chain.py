"""Several recipes, one after the other."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator
from torch import nn

from ..targets.data import Bounds, Records
from ..targets.errors import InputError
from ..targets.seeds import derive
from .quantize import Quantize
from .recipe import RECIPES, Recipe


@RECIPES.register
class Chain(Recipe):
    """Recipes applied in order, each to the result of the one before, as in Deep Compression (arXiv:1510.00149)."""

    kind: Literal["chain"] = "chain"
    steps: tuple[SerializeAsAny[Recipe], ...] = Field(
        min_length=2, description="recipes, first to last; quantize can only be the last, since nothing trains integers"
    )

    @field_validator("steps", mode="before")
    @classmethod
    def _parse(cls, steps: Any) -> Any:
        if not isinstance(steps, list | tuple):
            return steps
        try:
            return tuple(RECIPES.parse(step) for step in steps)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("steps")
    @classmethod
    def _quantize_last(cls, steps: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
        for step in steps[:-1]:
            if _quantizes(step):
                raise ValueError("quantize must be the last step: no other recipe works on integer weights")
        return steps

    @property
    def touches_records(self) -> bool:
        return any(step.touches_records for step in self.steps)

    @property
    def trains(self) -> bool:
        return any(step.trains for step in self.steps)

    @property
    def words(self) -> str:
        return "; then ".join(step.words for step in self.steps)

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        for position, step in enumerate(self.steps):
            module = step.apply(module, records, bounds, seed=derive(seed, "step", position))
        return module


def _quantizes(recipe: Recipe) -> bool:
    return isinstance(recipe, Quantize) or (isinstance(recipe, Chain) and _quantizes(recipe.steps[-1]))
