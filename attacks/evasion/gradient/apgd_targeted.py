"""Targeted Auto-PGD: towards each of the nearest other classes in turn, until a record has any of them."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt

from ...case import Case
from ...effort import Effort
from ..ascent.losses import Loss
from ..engine import PERTURBERS, Search
from .apgd import ascend
from .pgd import GradientPerturber


@PERTURBERS.register
class ApgdTargeted(GradientPerturber):
    """Targeted Auto-PGD (Croce & Hein 2020, arXiv:2003.01690) towards the classes that each record is nearest to.

    Where the class with the second largest logit is not the one that can be reached, an untargeted attack runs against
    a wall; this one tries others too, each for as long as it may still lead somewhere (`apgd.out_of_reach`). Any
    misclassification counts. Of an attacker who wants one class, that one is tried as often as there would be classes.
    """

    kind: Literal["apgd-targeted"] = "apgd-targeted"
    informs: ClassVar[bool] = True
    loss: Loss = Field("dlr", description="what is ascended: cross-entropy, minus the logit margin, or DLR")
    steps: PositiveInt = Field(20, le=100_000, description="gradient steps per class and restart")
    classes: PositiveInt = Field(5, le=100_000, description="tried one by one, those with the largest logits first")

    @property
    def effort(self) -> Effort:
        return Effort(gradients=0.45 * self.steps * self.restarts * self.classes)  # the others are given up

    def perturb(self, search: Search, case: Case) -> None:
        if len(search.active) == 0:
            return
        model = self.model(search, case)
        ranked = model.ranked(search.ball.center, search.y)
        runs = self.restarts * min(self.classes, ranked.shape[1])
        places = torch.empty_like(search.fooled, dtype=torch.int64)
        places[search.active] = torch.arange(len(ranked), device=ranked.device)  # rows leave `active`, not `ranked`
        for run in range(runs):
            search.resume()
            if search.goal == "untargeted":
                search.towards = ranked[places[search.active], run // self.restarts]
            ascend(search, model, self.steps, run, runs, gives_up=search.goal == "untargeted")
