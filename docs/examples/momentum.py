"""MI-FGSM: gradient steps with momentum (Dong et al. 2018, arXiv:1710.06081)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.ascent.gradients import Ascent
from crushproof.attacks.evasion.ball import SMALLEST, per_record
from crushproof.attacks.evasion.engine import Search
from crushproof.attacks.evasion.gradient.pgd import GradientPerturber, share_at


class MomentumIterative(GradientPerturber):
    """Momentum iterative gradient ascent (MI-FGSM, Dong et al. 2018, arXiv:1710.06081), from random starts."""

    kind: Literal["mi-fgsm"] = "mi-fgsm"
    decay: float = Field(1.0, ge=0, description="how much of the velocity a step keeps; 0 is PGD")

    def perturb(self, search: Search, case: Case) -> None:
        model = self.model(search, case)
        for restart in range(self.restarts):
            if len(search.active) == 0:  # the deployed model is fooled on every record
                return
            x, found = search.first_ascent(model, restart, restart / self.restarts)
            velocity = torch.zeros_like(x)
            for step in range(1, self.steps + 1):
                if len(x) == 0:
                    return
                size = search.ball.epsilon * share_at((step - 0.5) / self.steps)
                velocity = self.decay * velocity + unit(found.gradient)
                x = search.ball.step(x, velocity, size)
                found = search.ascent(model, x)
                # The deployed model is asked where the twin looks fooled; who is fooled leaves the search.
                stay = search.offer(x, found.margin, (restart + step / self.steps) / self.restarts)
                if stay is not None:
                    x, velocity, found = x[stay], velocity[stay], Ascent(*(column[stay] for column in found))
        search.close()


def unit(gradient: torch.Tensor) -> torch.Tensor:
    """Each record's gradient [n, *shape] at an L1 norm of 1; zero where it is zero or not finite."""
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    return gradient / per_record(gradient.flatten(1).abs().sum(1).clamp_min(SMALLEST), gradient)
