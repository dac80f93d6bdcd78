"""Several recipes, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, field_validator
from torch import nn

from ..targets.data.records import Bounds, Records
from ..targets.errors import InputError, NotApplicable
from ..targets.seeds import derive
from ..training.lessons import Work
from ..training.privacy import Noised
from .recipe import RECIPES, Promise, Recipe, TrainingRecipe, work_of


@RECIPES.register
class Chain(TrainingRecipe):
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
        counting: Recipe | None = None
        for step, following in pairwise(flat(steps)):
            counting = step if step.counts_activations else counting
            if step.is_last:
                raise ValueError(f"{step.kind} must be the last step: no other recipe works on integer weights")
            if counting is not None and not following.keeps_activations:
                raise ValueError(
                    f"{following.kind} cannot follow {counting.kind}, which counts the activations of the layers as "
                    f"they are; put {following.kind} before it"
                )
        return steps

    def hardened(self, metric: str, setting: Mapping[str, Any]) -> list[Recipe]:
        """With one of its steps hardened."""
        return [
            self.model_copy(update={"steps": (*self.steps[:at], way, *self.steps[at + 1 :])})
            for at, step in enumerate(self.steps)
            for way in step.hardened(metric, setting)
        ]

    @property
    def touches_records(self) -> bool:
        return any(step.touches_records for step in self.steps)

    def spends(self, records: int) -> tuple[Noised, ...] | None:
        every = [step.spends(records) for step in self.steps]
        return None if None in every else tuple(one for step in every for one in step or ())

    @property
    def trains(self) -> bool:
        return any(step.trains for step in self.steps)

    @property
    def passes(self) -> float | None:
        every = [step.passes for step in self.steps]
        return None if None in every else sum(one for one in every if one is not None)

    @property
    def promise(self) -> Promise | None:
        return "shapes" if all(step.promise for step in self.steps) else None

    @property
    def keeps_operators(self) -> bool:
        return all(step.keeps_operators for step in self.steps)

    @property
    def bits(self) -> int | None:
        return min((step.bits for step in self.steps if step.bits is not None), default=None)

    @property
    def phrase(self) -> str:
        return "; then ".join(step.phrase for step in self.steps)

    def settled(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Recipe:
        """With its first step settled: what later steps work on is not there before the others have run."""
        first = self.steps[0].settled(module, records, bounds, seed=derive(seed, "step", 0))
        return self.model_copy(update={"steps": (first, *self.steps[1:])})

    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        for position, step in enumerate(self.steps):
            try:
                module = yield from work_of(step, module, records, bounds, seed=derive(seed, "step", position))
            except NotApplicable as error:
                raise NotApplicable(f"Step {position + 1} ({step.kind}): {error}") from error
        return module


def flat(steps: tuple[Recipe, ...]) -> list[Recipe]:
    """The steps, those of chains among them in their place."""
    return [inner for step in steps for inner in (flat(step.steps) if isinstance(step, Chain) else [step])]
