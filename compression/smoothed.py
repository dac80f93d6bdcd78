"""A model that is served by majority vote over noisy copies of an input, as its file says."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.serving.smoothed import AUDITED, LEAST, MOST, NoisyVote, copies, counted, shares
from ..targets.technique import Technique
from .answers import answers_limited
from .inputs import check_values
from .layers.edit import rebuildable
from .recipe import RECIPES, Recipe
from .wrapping import Wrapper, WrappingRecipe


class Smoothing(Technique):
    """How inputs are smoothed over: fields of the recipe and of the defense."""

    sigma: PositiveFloat = Field(0.25, le=10, description="standard deviation of the noise, in [0, 1] units")
    samples: int = Field(32, ge=1, le=MOST, description="noisy copies of an input, each of which has a vote")

    @property
    def smoothed_words(self) -> str:
        return f"the majority of {self.samples} answers under Gaussian noise of {self.sigma:g}"


@rebuildable("sigma", "samples", "shape")
class SmoothedAnswers(Wrapper):
    """A classifier by the votes of noisy copies: logarithms of their shares, float32 [n, classes] of x [n, *shape].

    What ships is the model inside; its file says how it is served (`targets.serving.smoothed`).

    Args:
        shape: of a record, and of the buffer `scale`.
    """

    last: ClassVar[bool] = True

    scale: Tensor

    def __init__(self, sigma: float, samples: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.sigma, self.samples, self.shape = sigma, samples, shape
        self.soft = False
        self.register_buffer("scale", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        if not self.soft:
            return counted(self.inner, x, self.scale, self.samples, AUDITED).clamp_min(LEAST).log()
        logits: Tensor = self.inner(copies(x, self.scale, self.samples, AUDITED).flatten(0, 1))
        votes = shares(logits.detach(), self.samples)
        every = torch.log_softmax(logits, 1).view(self.samples, -1, logits.shape[1])
        mean = torch.logsumexp(every, 0) - math.log(self.samples)
        first = torch.zeros_like(votes).scatter(1, votes.argmax(1, keepdim=True), 1.0) > 0
        won = torch.where(first, torch.maximum(mean, mean.amax(1, keepdim=True) + LEAST), mean)
        return mean + (won - mean).detach()

    def shipped(self) -> nn.Module:
        return self.inner

    @property
    def vote(self) -> NoisyVote:
        return NoisyVote(self.sigma, self.samples, self.scale.cpu())


def softened(vote: NoisyVote, base: nn.Module) -> SmoothedAnswers:
    """What whoever knows of the vote differentiates: the mean probability over noise that is new at every step.

    Expectation over transformation, in the form of SmoothAdv (Salman et al. 2019, arXiv:1906.04584). The class is that
    of the votes; votes themselves have no gradient.
    """
    made = SmoothedAnswers(vote.sigma, vote.samples, tuple(vote.scale.shape))
    made.scale.copy_(vote.scale)
    made.inner, made.soft = base, True
    return made.eval()


@RECIPES.register
class VoteUnderNoise(Smoothing, WrappingRecipe):
    """Another recipe, whose model is served by majority vote over noisy copies of an input.

    The file is that recipe's, and says so in its metadata; `crushproof.load` serves it so, other runtimes do not.
    """

    kind: Literal["vote-under-noise"] = "vote-under-noise"

    @model_validator(mode="after")
    def _by_votes_alone(self) -> VoteUnderNoise:
        if answers_limited(self.recipe):
            raise ValueError("what a vote shows are shares of votes: leave out what limits answers")
        return self

    @property
    def wrapped_words(self) -> str:
        return f"served by {self.smoothed_words}"

    @property
    def keeps_operators(self) -> bool:
        return self.recipe.keeps_operators

    def wrapper(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Wrapper:
        check_values(module, "given noise")
        if records.y.is_floating_point():
            raise NotApplicable("The model predicts values: there are no classes to vote for.")
        made = SmoothedAnswers(self.sigma, self.samples, tuple(records.x.shape[1:]))
        scale = (self.sigma * bounds.scale.cpu()).expand(made.shape)
        made.scale.copy_(scale if bounds.held is None else scale.masked_fill(bounds.held.cpu(), 0.0))
        return made


def voted_under_noise(recipe: object) -> bool:
    """Whether the recipe's model is served so."""
    return isinstance(recipe, VoteUnderNoise) or (
        isinstance(recipe, WrappingRecipe) and voted_under_noise(recipe.recipe)
    )


def asked_often(recipe: Recipe | None, times: int) -> Recipe | None:
    """The same recipe with so many times the votes, `MOST` at most."""
    if not isinstance(recipe, WrappingRecipe):
        return recipe
    more = {"samples": min(MOST, times * recipe.samples)} if isinstance(recipe, VoteUnderNoise) else {}
    return recipe.model_copy(update={"recipe": asked_often(recipe.recipe, times), **more})
