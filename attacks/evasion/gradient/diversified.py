"""Projected gradient descent from starts at which the answers differ as much as possible."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from ..ascent.gradients import Gradients
from ..ascent.losses import Loss
from ..engine import PERTURBERS, Search
from .pgd import Pgd


@PERTURBERS.register
class Diversified(Pgd):
    """PGD from output-diversified starts (Tashiro et al. 2020, arXiv:2003.06878).

    A start goes a few whole steps of the radius in the direction that changes a random combination of the logits most.
    Random inputs all answer alike where a net is flat or its margin has several basins; these do not.
    """

    kind: Literal["diversified"] = "diversified"  # type: ignore[assignment]  # another kind than its base's
    loss: Loss = Field("margin", description="what is ascended: cross-entropy, minus the logit margin, or DLR")
    steps: PositiveInt = Field(20, le=100_000, description="gradient steps per restart")
    restarts: PositiveInt = Field(10, le=100_000, description="starts; a fooled record takes no further one")
    start_steps: PositiveInt = Field(2, le=100, description="of a start, each as long as the radius")

    def start(self, search: Search, model: Gradients, restart: int) -> Tensor | None:
        x = search.start(restart)
        weights = 2 * search.noise((model.classes(x),), "direction", restart) - 1
        for _ in range(self.start_steps):
            x = search.ball.step(x, model.towards(x, weights), search.ball.epsilon)
        return x
