"""The nearest adversarial input of each record so far: what every minimal-norm search works towards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ....training.ball import per_record

Distance = Literal["linf", "l2", "l1", "l0"]
HALVINGS = 12  # of the way from a record to its adversarial input


def norms(change: Tensor, distance: Distance) -> Tensor:
    """[n], of change [n, *shape], in its dtype; "l0": how many elements are not 0."""
    flat = change.flatten(1)
    if distance == "l0":
        return (flat != 0).sum(1).to(change.dtype)
    length: Tensor = torch.linalg.vector_norm(flat, ord={"linf": torch.inf, "l2": 2, "l1": 1}[distance], dim=1)
    return length


class Nearest:
    """The nearest input of each record that the deployed model answers as the attacker wants.

    Args:
        center: float32 [n, *shape], the records; low, high: broadcastable to it, what an input may be.
        reached: for inputs [k, *shape] and int64 [k], the records they are of: bool [k], asked of the deployed model.
        onto: where inputs lie on a grid: the nearest on it, like the inputs.
    """

    def __init__(
        self,
        center: Tensor,
        low: Tensor,
        high: Tensor,
        distance: Distance,
        reached: Callable[[Tensor, Tensor], Tensor],
        onto: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.center, self.distance = center, distance
        self.low, self.high = low.expand_as(center), high.expand_as(center)
        self.x, self.length = center.clone(), torch.full((len(center),), torch.inf, device=center.device)
        self._reached, self._onto = reached, onto

    def offer(self, x: Tensor, likely: Tensor) -> Tensor:
        """Asks about those of x [n, *shape] that are `likely`, bool [n], and nearer than what is known.

        Returns:
            bool [n]: which are adversarial; of those not asked, whether that is likely.
        """
        if self._onto is not None:
            x = self._onto(x)
        length = norms(x - self.center, self.distance)
        asked = (likely & (length < self.length)).nonzero().squeeze(1)
        if len(asked):
            right = self._reached(x[asked], asked)
            likely = likely.clone()
            likely[asked] = right
            better = asked[right]
            self.x[better], self.length[better] = x[better], length[better]
        return likely

    def take(self, rows: Tensor) -> Nearest:
        """Some of the records, int64, to be worked on alone; `put` brings back what was found."""
        some = Nearest(
            self.center[rows],
            self.low[rows],
            self.high[rows],
            self.distance,
            lambda x, index: self._reached(x, rows[index]),
            self._onto,
        )
        some.x, some.length = self.x[rows], self.length[rows]
        return some

    def put(self, rows: Tensor, some: Nearest) -> None:
        self.x[rows], self.length[rows] = some.x, some.length

    def inside(self, change: Tensor) -> Tensor:
        """The inputs [n, *shape] at these changes, cut off at the limits."""
        return torch.maximum(torch.minimum(self.center + change, self.high), self.low)

    def free(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The gradient at x without what leads out of the limits."""
        out = ((x >= self.high) & (gradient > 0)) | ((x <= self.low) & (gradient < 0))
        return gradient.masked_fill(out, 0.0)

    def halve(self) -> None:
        """Goes from what was found towards the record as far as the deployed model allows (for L0 there is no way)."""
        if self.distance == "l0":
            return
        found = self.length.isfinite()
        change = (self.x - self.center)[found]
        least, most = torch.zeros(len(change), device=change.device), torch.ones(len(change), device=change.device)
        whole = torch.zeros_like(self.center)
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            whole[found] = change * per_record(middle, change)
            good = self.offer(self.inside(whole), found)[found]
            least, most = torch.where(good, least, middle), torch.where(good, middle, most)
