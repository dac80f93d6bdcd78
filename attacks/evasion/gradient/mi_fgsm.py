"""MI-FGSM: gradient steps with momentum (Dong et al. 2018, arXiv:1710.06081)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ....training.ball import SMALLEST, per_record
from ...case import Case
from ..ascent.gradients import Ascent
from ..engine import PERTURBERS, Search
from .pgd import GradientPerturber, default_step


@PERTURBERS.register
class MiFgsm(GradientPerturber):
    """Momentum iterative FGSM (Dong et al. 2018, arXiv:1710.06081), from random starts.

    FGSM (Goodfellow et al. 2015, arXiv:1412.6572) has no kind of its own: it is one step of PGD, or of this.
    """

    kind: Literal["mi-fgsm"] = "mi-fgsm"
    decay: float = Field(
        1.0, ge=0, le=1000, description="how much of the velocity a step keeps; 0 is PGD with steps of one length"
    )

    def perturb(self, search: Search, case: Case) -> None:
        model, size = self.model(search, case), default_step(search.ball.epsilon, self.steps)
        for restart in range(self.restarts):
            if len(search.active) == 0:
                return
            x, found = search.first_ascent(model, restart, restart / self.restarts)
            velocity = torch.zeros_like(x)
            for step in range(1, self.steps + 1):
                if len(x) == 0:
                    return
                velocity = self.decay * velocity + unit(found.gradient)
                x = search.ball.step(x, velocity, size)
                found = search.ascent(model, x)
                stay = search.offer(x, found.margin, (restart + step / self.steps) / self.restarts)
                if stay is not None:
                    x, velocity, found = x[stay], velocity[stay], Ascent(*(column[stay] for column in found))


def unit(gradient: Tensor) -> Tensor:
    """Each record's gradient [n, *shape] at an L1 norm of 1; zero where it is zero or not finite."""
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    return gradient / per_record(gradient.flatten(1).abs().sum(1).clamp_min(SMALLEST), gradient)
