"""What goes into the same file before a model or behind it, and the recipe that puts it there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, SerializeAsAny, field_validator
from torch import nn

from ..targets.data.records import Bounds, Records
from ..targets.errors import InputError
from ..training.lessons import Work
from ..training.privacy import Noised
from .recipe import RECIPES, Promise, Recipe, TrainingRecipe, work_of


class Wrapper(nn.Module):
    """A model with something before it or behind it.

    Attributes:
        inner: the model; what is stored and rebuilt puts it there.
        last: it works on the answers. Such a one stands outside of those that work on inputs, which changes nothing of
            what the file computes, so that what an attacker finds behind it has the others around it.
    """

    last: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.inner: nn.Module = nn.Identity()


def behind(module: nn.Module) -> nn.Module:
    """The model whose answers are changed, with what goes before it; the module itself where no answers are."""
    while isinstance(module, Wrapper) and module.last:
        module = module.inner
    return module


class WrappingRecipe(TrainingRecipe):
    """Another recipe, and something before or behind what it makes."""

    recipe: SerializeAsAny[Recipe] = Field(description="makes the model that is wrapped")

    @field_validator("recipe", mode="before")
    @classmethod
    def _parse(cls, recipe: Any) -> Any:
        try:
            return RECIPES.parse(recipe)
        except InputError as error:
            raise ValueError(str(error)) from None

    @abstractmethod
    def wrapper(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Wrapper:
        """What goes around `module`, without it. Arguments and errors are those of `apply`; of `records` the shape and
        the kind of answers are read, no value.
        """

    @property
    @abstractmethod
    def wrapped_words(self) -> str:
        """What is before or behind the model, as the end of a phrase: `answers: labels only`."""

    @property
    def touches_records(self) -> bool:
        return self.recipe.touches_records

    def spends(self, records: int) -> tuple[Noised, ...] | None:
        return self.recipe.spends(records)

    @property
    def trains(self) -> bool:
        return self.recipe.trains

    @property
    def passes(self) -> float | None:
        return self.recipe.passes

    @property
    def promise(self) -> Promise | None:
        return self.recipe.promise

    @property
    def keeps_operators(self) -> bool:
        return False

    @property
    def bits(self) -> int | None:
        return self.recipe.bits

    @property
    def phrase(self) -> str:
        return f"{self.recipe.phrase}; {self.wrapped_words}"

    def hardened(self, metric: str, setting: Mapping[str, Any]) -> list[Recipe]:
        return [self.model_copy(update={"recipe": one}) for one in self.recipe.hardened(metric, setting)]

    def settled(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Recipe:
        return self.model_copy(update={"recipe": self.recipe.settled(module, records, bounds, seed=seed)})

    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        wrapper = self.wrapper(module, records, bounds, seed=seed)
        made = yield from work_of(self.recipe, module, records, bounds, seed=seed)
        return _around(made, wrapper).eval()


def _around(module: nn.Module, wrapper: Wrapper) -> Wrapper:
    if isinstance(module, Wrapper) and module.last and not wrapper.last:
        module.inner = _around(module.inner, wrapper)
        return module
    wrapper.inner = module
    return wrapper


def compressed_by(recipe: Recipe) -> Recipe:
    """The recipe that made the model in the file, without what is before or behind it."""
    return compressed_by(recipe.recipe) if isinstance(recipe, WrappingRecipe) else recipe
