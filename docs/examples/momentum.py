"""NI-FGSM: gradient steps with Nesterov's momentum (Lin et al. 2020, arXiv:1908.06281)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.ascent.gradients import Ascent
from crushproof.attacks.evasion.engine import Search
from crushproof.attacks.evasion.gradient.mi_fgsm import unit
from crushproof.attacks.evasion.gradient.pgd import GradientPerturber, settling


class NesterovIterative(GradientPerturber):
    """Nesterov iterative gradient ascent (NI-FGSM, Lin et al. 2020, arXiv:1908.06281), from random starts."""

    kind: Literal["ni-fgsm"] = "ni-fgsm"
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
                size = search.ball.epsilon * settling((step - 0.5) / self.steps)
                velocity = self.decay * velocity + unit(found.gradient)
                x = search.ball.step(x, velocity, size)
                ahead = search.ball.step(x, velocity, self.decay * size)  # where the velocity is about to carry it
                found = search.ascent(model, ahead)
                # The deployed model is asked where the twin looks fooled; who is fooled leaves the search.
                stay = search.offer(ahead, found.margin, (restart + step / self.steps) / self.restarts)
                if stay is not None:
                    x, velocity, found = x[stay], velocity[stay], Ascent(*(column[stay] for column in found))
        search.close()
