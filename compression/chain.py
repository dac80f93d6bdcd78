"""Several recipes, one after the other."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, field_validator
from torch import nn

from ..targets.errors import InputError, NotApplicable
from ..targets.records import Bounds, Records
from ..targets.seeds import derive
from .recipe import RECIPES, Recipe

INTEGERS = ("quantize", "mixed-precision")  # kinds whose result nothing can follow
AFTER_SPARSITY = ("share", *INTEGERS)  # kinds that leave the activations that a layer chooses from as they are


@RECIPES.register
class Chain(Recipe):
    """Recipes applied in order, each to the result of the one before, as in Deep Compression (arXiv:1510.00149).

    A step that cannot do its work ends the whole chain: there is no candidate of the steps before it.
    """

    family: ClassVar[str] = "Chains"
    kind: Literal["chain"] = "chain"
    steps: tuple[SerializeAsAny[Recipe], ...] = Field(
        min_length=2,
        description="recipes, first to last; quantize and mixed-precision can only be last, since nothing trains "
        "integers; after dynamic-sparsity come only share and these",
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
    def _order(cls, steps: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
        kinds = [step.kind for step in flat(steps)]
        for position, kind in enumerate(kinds[:-1]):
            following = kinds[position + 1]
            if kind in INTEGERS:
                raise ValueError(f"{kind} must be the last step: no other recipe works on integer weights")
            if "dynamic-sparsity" in kinds[: position + 1] and following not in AFTER_SPARSITY:
                raise ValueError(
                    f"{following} cannot follow dynamic-sparsity, which counts the activations of the layers as they "
                    f"are; put {following} before it"
                )
        return steps

    @property
    def touches_records(self) -> bool:
        return any(step.touches_records for step in self.steps)

    @property
    def trains(self) -> bool:
        return any(step.trains for step in self.steps)

    @property
    def phrase(self) -> str:
        return "; then ".join(step.phrase for step in self.steps)

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        for position, step in enumerate(self.steps):
            try:
                module = step.apply(module, records, bounds, seed=derive(seed, "step", position))
            except NotApplicable as error:
                raise NotApplicable(f"Step {position + 1} ({step.kind}): {error}") from error
        return module


def flat(steps: tuple[Recipe, ...]) -> list[Recipe]:
    """The steps, those of chains among them in their place."""
    return [inner for step in steps for inner in (flat(step.steps) if isinstance(step, Chain) else [step])]
