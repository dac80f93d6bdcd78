"""Searches for the nearest adversarial input as parts of an attack: a success is one that lies within epsilon."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ....targets.errors import NotApplicable
from ....training.ball import Ball
from ...access import Ledger
from ...case import Case
from ..ascent.gradients import Ascent, Gradients
from ..ascent.losses import Goal, Loss
from ..ball import Region
from ..engine import PERTURBERS, Search
from ..nearest.carlini_wagner import carlini_wagner
from ..nearest.fmn import fmn
from ..nearest.found import Nearest
from ..nearest.linear import linear
from .pgd import GradientPerturber


class NearestPart(GradientPerturber):
    """What FAB, FMN and Carlini & Wagner's attack share: each goes on from its records until its steps are spent.

    What it finds does not hang on epsilon, only whether it is near enough: gradients that are masked at the edge of a
    ball may well be there for a search that walks along the boundary.
    """

    loss: Loss = Field("margin", description="what is ascended: minus the logit margin, as these searches are made for")
    steps: PositiveInt = Field(100, le=100_000, description="gradient steps of each start")
    restarts: PositiveInt = Field(1, le=1000, description="starts: the first one at the record, further ones at random")

    @abstractmethod
    def search(self, model: Gradients, y: Tensor, nearest: Nearest, start: Tensor | None) -> None:
        """Offers to `nearest` what it finds on the way from `start` (None: from the records)."""

    def perturb(self, search: Search, case: Case) -> None:
        module = self.module(case)
        assert module is not None  # why_not came first
        search.flat[search.active] = True
        search.ascent(self.model(search, case), search.ball.center)
        for restart in range(self.restarts if len(search.active) else 0):
            ball, units = search.ball, Units.of(search.ball)
            model = InUnits(module, self.loss, search.ledger, goal=search.goal, units=units)

            def reached(inputs: Tensor, rows: Tensor, units: Units = units) -> Tensor:
                return search.reaches(units.back(inputs, rows), rows)

            center, low, high = (units.to(one) for one in (ball.center, units.low, units.high))
            nearest = Nearest(center, low, high, ball.norm, reached, None if units.whole is None else units.onto)
            start = units.to(search.start(restart)) if restart else None
            self.search(model, search.y, nearest, start)
            nearest.halve()
            found = units.back(nearest.x)
            stay = search.claim(found, nearest.length.isfinite(), math.nan)
            if stay is not None:
                found = found[stay]
            if len(found) == 0:
                return
            search.query(search.ball.project(found), math.nan)
            if len(search.active) == 0:
                return


@dataclass(frozen=True)
class Units:
    """Of each record the limits of its elements, [n, *shape], and what a distance of 1 is (`Ball.scale`)."""

    low: Tensor
    high: Tensor
    origin: Tensor
    scale: Tensor
    whole: Tensor | None

    @classmethod
    def of(cls, region: Region) -> Units:
        if not isinstance(region, Ball):
            one = torch.ones((), device=region.center.device)
            return cls(region.low, region.high, torch.zeros_like(one), one, None)
        bounds, center = region.bounds, region.center
        low, high = bounds.low.expand_as(center), bounds.high.expand_as(center)
        if bounds.held is not None:
            low, high = (torch.where(bounds.held, center, end) for end in (low, high))
        return cls(low, high, bounds.low, bounds.scale, bounds.whole)

    def to(self, x: Tensor) -> Tensor:
        return (x - self.origin) / self.scale

    def free(self, inputs: Tensor) -> Tensor:
        """In units of the data, wherever it lies."""
        return inputs * self.scale + self.origin

    def onto(self, inputs: Tensor) -> Tensor:
        """The nearest inputs with whole numbers where a record has them."""
        x = self.free(inputs)
        return inputs if self.whole is None else torch.where(self.whole, self.to(x.round()), inputs)

    def back(self, inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """In units of the data, to the bit within the limits; `rows` int64 [k], the records they are of (all)."""
        low, high = (self.low, self.high) if rows is None else (self.low[rows], self.high[rows])
        x = self.free(inputs)
        if self.whole is not None:
            x = torch.where(self.whole, x.round(), x)
        return torch.maximum(torch.minimum(x, high), low)


class InUnits(Gradients):
    """Gradients and margins at inputs in units of [0, 1] pixels, or at the whole numbers nearest to them."""

    def __init__(self, module: nn.Module, loss: Loss, ledger: Ledger, *, goal: Goal, units: Units) -> None:
        super().__init__(module, loss, ledger, goal=goal)
        self._units = units

    def __call__(self, x: Tensor, y: Tensor, towards: Tensor | None = None) -> Ascent:
        found = super().__call__(self._units.free(self._units.onto(x)), y, towards)
        return found._replace(gradient=found.gradient * self._units.scale)

    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        return super().margins(self._units.free(self._units.onto(x)), y)


@PERTURBERS.register
class Fab(NearestPart):
    """The nearest point beyond the boundary of a linear model, again and again (after FAB, Croce & Hein 2020,
    arXiv:1907.02044; see `nearest.linear`).
    """

    kind: Literal["fab"] = "fab"

    def search(self, model: Gradients, y: Tensor, nearest: Nearest, start: Tensor | None) -> None:
        linear(model, y, nearest, self.steps, start)


@PERTURBERS.register
class Fmn(NearestPart):
    """Fast Minimum-Norm (Pintor et al. 2021, arXiv:2102.12827)."""

    kind: Literal["fmn"] = "fmn"

    def search(self, model: Gradients, y: Tensor, nearest: Nearest, start: Tensor | None) -> None:
        fmn(model, y, nearest, self.steps, start)


@PERTURBERS.register
class CarliniWagner(NearestPart):
    """Carlini & Wagner's attack (2017, arXiv:1608.04644), in L2 alone."""

    kind: Literal["carlini-wagner"] = "carlini-wagner"
    steps: PositiveInt = Field(200, le=100_000, description="gradient steps of all rounds together")

    def perturb(self, search: Search, case: Case) -> None:
        if search.ball.norm != "l2":
            raise NotApplicable("it looks for the nearest input in L2, and the attack is in L-inf")
        super().perturb(search, case)

    def search(self, model: Gradients, y: Tensor, nearest: Nearest, start: Tensor | None) -> None:
        carlini_wagner(model, y, nearest, self.steps, start)
