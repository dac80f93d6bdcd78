"""A model whose file shows less than all its scores: fewer of them, coarser ones, or the class alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.seeds import generator
from ..targets.technique import Technique
from .layers.edit import rebuildable
from .recipe import RECIPES, Recipe
from .wrapping import Wrapper, WrappingRecipe

Shown = Literal["scores", "rounded", "top", "labels", "noisy"]

PRIME = 65_519  # of the hash of an input: its cubes are a permutation, its products fit 64 bits
CODES = 1000  # per unit of an input, which the hash tells apart
ONLY = {"decimals": "rounded", "count": "top", "noise": "noisy", "noise_seed": "noisy"}  # fields of one way to show
LEAST = 1e-6  # the probability that is told in place of 0, of which there is no logarithm


class ShownAnswers(Technique):
    """What of a classifier's answers is shown: fields of the recipe and of the defense."""

    show: Shown = Field(
        "labels",
        description="scores: all, at `temperature`; rounded: probabilities to so many `decimals`; top: the `count` "
        "largest probabilities; labels: the class alone; noisy: logits with `noise`, the class kept, the same for the "
        "same input (after MemGuard, Jia et al. 2019, arXiv:1909.10594)",
    )
    temperature: PositiveFloat = Field(1.0, le=1e6, description="logits are divided by it before anything else")
    decimals: int = Field(2, ge=1, le=6, description="rounded: of a probability")
    count: PositiveInt = Field(1, le=10**6, description="top: probabilities shown; the others are told their mean")
    noise: PositiveFloat = Field(1.0, le=1e6, description="noisy: its standard deviation, in logits at `temperature`")
    noise_seed: int = Field(0, ge=0, lt=2**62, description="noisy: fixes it; a secret towards who can only ask")

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> ShownAnswers:
        for name, show in ONLY.items():
            if self.show != show and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} says how answers are {show}, and show is {self.show}: write show: {show}")
        return self

    @property
    def shown_words(self) -> str:
        warm = "" if self.temperature == 1 else f" at temperature {self.temperature:g}"
        return {
            "scores": f"all scores{warm}",
            "rounded": f"probabilities of {self.decimals} decimals{warm}",
            "top": f"the {self.count} largest probabilities{warm}" if self.count > 1 else f"the top probability{warm}",
            "labels": "labels only",
            "noisy": f"scores with noise of {self.noise:g}{warm}",
        }[self.show]


@rebuildable("show", "temperature", "decimals", "count", "noise", "mixing")
class LimitedAnswers(Wrapper):
    """A classifier that answers with logarithms of the probabilities it shows, float32 [n, classes].

    Softmax of an answer is what is shown, so that all who read logits read it. The class stays the class, also where
    rounding makes two probabilities alike; one shown as 0 is told as a quarter of the last decimal. Who holds the
    file's bytes finds the logits of the model behind what is shown.

    Args:
        mixing: values of a record where answers are noisy, else 0: so many factors has the hash that draws the noise.
    """

    last: ClassVar[bool] = True

    factors: Tensor

    def __init__(self, show: Shown, temperature: float, decimals: int, count: int, noise: float, mixing: int) -> None:
        super().__init__()
        self.show, self.temperature, self.decimals, self.count = show, temperature, decimals, count
        self.noise, self.mixing = noise, mixing
        self.register_buffer("factors", torch.zeros(mixing, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x) / self.temperature
        if self.show == "scores":
            return logits
        first = logits >= logits.amax(1, keepdim=True)
        if self.show == "labels":
            return torch.where(first, 1.0, LEAST).log()
        if self.show == "noisy":
            noisy = logits + self.noise * self._uniform(x, logits.shape[1])
            return torch.where(first, torch.maximum(noisy, noisy.amax(1, keepdim=True) + LEAST), noisy)
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

    def _uniform(self, x: Tensor, classes: int) -> Tensor:
        """Noise of mean 0 and variance 1 that follows from the input: float32 [n, classes].

        In whole numbers, so that every runtime draws the same.
        """
        codes = (x.flatten(1) * CODES).round().long() % PRIME
        hashed = (codes * self.factors).sum(1, keepdim=True)
        for turn in range(3):
            hashed = (hashed + (torch.arange(classes, device=x.device) * 7919 if turn == 1 else 1)) % PRIME
            hashed = (hashed * hashed % PRIME) * hashed % PRIME
        return (hashed.float() / PRIME * 2 - 1) * 3**0.5


def limits_answers(description: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is one of a `LimitedAnswers`, as `deployment.structure` describes modules."""
    return any(entry.get("path") == "" and entry.get("type") == LimitedAnswers.__name__ for entry in description)


@RECIPES.register
class LimitAnswers(ShownAnswers, WrappingRecipe):
    """Another recipe, and behind it, in the same file, a layer that shows less of its scores."""

    kind: Literal["limit-answers"] = "limit-answers"

    @property
    def wrapped_words(self) -> str:
        return f"answers: {self.shown_words}"

    def wrapper(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Wrapper:
        if records.y.is_floating_point():
            raise NotApplicable("The model predicts values: there are no scores of classes to show less of.")
        length = records.x[0].numel() if self.show == "noisy" else 0
        made = LimitedAnswers(self.show, self.temperature, self.decimals, self.count, self.noise, length)
        draw = generator(self.noise_seed, "noise on answers")
        made.factors.copy_(torch.randint(1, PRIME, (length,), generator=draw))
        return made


def answers_noisy(recipe: object) -> bool:
    """Whether the recipe puts noise on what its model answers, whatever else it wraps."""
    return isinstance(recipe, WrappingRecipe) and (
        (isinstance(recipe, LimitAnswers) and recipe.show == "noisy") or answers_noisy(recipe.recipe)
    )


def without_noise(recipe: Recipe | None) -> Recipe | None:
    """The same recipe with all scores in place of noisy ones."""
    if not isinstance(recipe, WrappingRecipe):
        return recipe
    loud = isinstance(recipe, LimitAnswers) and recipe.show == "noisy"
    quiet = {"show": "scores", "noise": 1.0, "noise_seed": 0} if loud else {}
    return recipe.model_copy(update={"recipe": without_noise(recipe.recipe), **quiet})


def answers_limited(recipe: object) -> bool:
    """Whether the recipe limits what its model shows, whatever else it wraps."""
    return isinstance(recipe, WrappingRecipe) and (isinstance(recipe, LimitAnswers) or answers_limited(recipe.recipe))
