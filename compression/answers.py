"""A model whose file shows less than all its scores: fewer of them, coarser ones, or the class alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny, field_validator
from torch import Tensor, nn

from ..targets.data.records import Bounds, Records
from ..targets.errors import InputError, NotApplicable
from ..targets.technique import Technique
from ..training.lessons import Work
from ..training.privacy import Noised
from .layers.edit import rebuildable
from .recipe import RECIPES, Promise, Recipe, TrainingRecipe, work_of

Shown = Literal["scores", "rounded", "top", "labels"]

LEAST = 1e-6  # the probability that is told in place of 0, of which there is no logarithm


class ShownAnswers(Technique):
    """What of a classifier's answers is shown: fields of the recipe and of the defense."""

    show: Shown = Field(
        "labels",
        description="scores: all, at `temperature`; rounded: probabilities to so many `decimals`; top: the `count` "
        "largest probabilities; labels: the class alone",
    )
    temperature: PositiveFloat = Field(1.0, le=1e6, description="logits are divided by it before anything else")
    decimals: int = Field(2, ge=1, le=6, description="rounded: of a probability")
    count: PositiveInt = Field(1, le=10**6, description="top: probabilities shown; the others are told their mean")

    @property
    def shown_words(self) -> str:
        warm = "" if self.temperature == 1 else f" at temperature {self.temperature:g}"
        return {
            "scores": f"all scores{warm}",
            "rounded": f"probabilities of {self.decimals} decimals{warm}",
            "top": f"the {self.count} largest probabilities{warm}" if self.count > 1 else f"the top probability{warm}",
            "labels": "labels only",
        }[self.show]


@rebuildable("show", "temperature", "decimals", "count")
class LimitedAnswers(nn.Module):
    """A classifier that answers with logarithms of the probabilities it shows, float32 [n, classes].

    Softmax of an answer is what is shown, so that all who read logits read it. The class stays the class, also where
    rounding makes two probabilities alike; one shown as 0 is told as a quarter of the last decimal.

    Attributes:
        inner: the model, whose logits an attacker with the file's bytes finds behind what is shown.
    """

    def __init__(self, show: Shown, temperature: float, decimals: int, count: int) -> None:
        super().__init__()
        self.show, self.temperature, self.decimals, self.count = show, temperature, decimals, count
        self.inner: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x) / self.temperature
        if self.show == "scores":
            return logits
        first = logits >= logits.amax(1, keepdim=True)
        if self.show == "labels":
            return torch.where(first, 1.0, LEAST).log()
        probabilities = torch.softmax(logits, 1)
        if self.show == "rounded":
            step = 10.0**-self.decimals
            shown = ((probabilities / step).round() * step).clamp_min(step / 4)
            return (shown + torch.where(first, step / 100, 0.0)).log()
        classes = logits.shape[1]
        kept = min(self.count, classes - 1)
        largest = torch.topk(probabilities, kept, dim=1).values
        rest = ((1 - largest.sum(1, keepdim=True)) / (classes - kept)).clamp_min(LEAST)
        return torch.where(probabilities >= largest[:, -1:], probabilities, rest).log()


def behind(module: nn.Module) -> nn.Module:
    """The model whose answers are limited; the module itself where none are."""
    return module.inner if isinstance(module, LimitedAnswers) else module


def limits_answers(description: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is one of a `LimitedAnswers`, as `deployment.structure` describes modules."""
    return any(entry.get("path") == "" and entry.get("type") == LimitedAnswers.__name__ for entry in description)


@RECIPES.register
class LimitAnswers(ShownAnswers, TrainingRecipe):
    """Another recipe, and behind it, in the same file, a layer that shows less of its scores."""

    kind: Literal["limit-answers"] = "limit-answers"
    recipe: SerializeAsAny[Recipe] = Field(description="makes the model whose answers are limited")

    @field_validator("recipe", mode="before")
    @classmethod
    def _parse(cls, recipe: Any) -> Any:
        try:
            return RECIPES.parse(recipe)
        except InputError as error:
            raise ValueError(str(error)) from None

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
        return f"{self.recipe.phrase}; answers: {self.shown_words}"

    def settled(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Recipe:
        return self.model_copy(update={"recipe": self.recipe.settled(module, records, bounds, seed=seed)})

    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        if records.y.is_floating_point():
            raise NotApplicable("The model predicts values: there are no scores of classes to show less of.")
        limited = LimitedAnswers(self.show, self.temperature, self.decimals, self.count)
        limited.inner = yield from work_of(self.recipe, module, records, bounds, seed=seed)
        return limited.eval()


def compressed_by(recipe: Recipe) -> Recipe:
    """The recipe that made what the file holds, without what it shows of its answers."""
    return compressed_by(recipe.recipe) if isinstance(recipe, LimitAnswers) else recipe
