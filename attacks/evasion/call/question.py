"""What one call looks for: an input near each record that a model answers as the attacker wants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ....targets.model import Target, device_of
from ....training.ball import EXACT
from ..ascent.losses import Goal
from ..ball import Region
from ..nearest.found import Distance, norms
from .allowed import checked_records, limits_of, region_of
from .attackable import Attackable, attackable
from .grid import NEAR, Grid, grid_of


@dataclass(frozen=True, eq=False)
class Question:
    """The arguments of `evade`, checked and put together.

    Args:
        opened: the model that decides; searched: the same on the nearest points of the grid, where there is one.
        x: float32 [n, *shape], on the model's device; wanted: int64 [n], the classes to get away from, or to.
        limits: float32 broadcastable to x.
        nearest: the nearest input is looked for in `region`, instead of any.
        region: where an input may lie, but for epsilon where the nearest one is looked for.
    """

    opened: Attackable
    searched: Attackable
    x: Tensor
    wanted: Tensor
    goal: Goal
    norm: Distance
    epsilon: float | None
    limits: tuple[Tensor, Tensor]
    nearest: bool
    region: Region
    on: Grid | None

    @classmethod
    def of(
        cls,
        target: nn.Module | Path | str | bytes | Target | Attackable,
        x: Tensor,
        y: Tensor,
        norm: Distance,
        epsilon: float | None,
        lower: float | Tensor | None,
        upper: float | Tensor | None,
        target_class: int | Tensor | None,
        grid: float | None,
    ) -> Question:
        """Raises InputError where they do not fit together."""
        x, y = checked_records(x, y)
        opened = attackable(target, tuple(x.shape[1:]))
        x = x.to(x.device if opened.twin is None else device_of(opened.twin, x.device))
        limits = limits_of(x, lower, upper)
        on = None if grid is None else grid_of(x, grid, lower)
        nearest = norm in ("l1", "l0") or (norm == "l2" and on is not None)
        nearest |= epsilon is None and max(limit.numel() for limit in limits) == 1
        region = region_of(x, norm, epsilon, *limits, any_within=nearest, on=on)
        wanted = y if target_class is None else torch.as_tensor(target_class).to(torch.int64).expand(len(y))
        goal: Goal = "untargeted" if target_class is None else "targeted"
        searched = opened if on is None else on.over(opened)
        return cls(opened, searched, x, wanted.to(x.device), goal, norm, epsilon, limits, nearest, region, on)

    def inputs(self, found: Tensor) -> Tensor:
        """What was found, float32 [n, *shape] on any device, as it is handed out."""
        found = found.to(self.x.device)
        return found if self.on is None else self.on.back(found, self.x, self.region)

    def distances(self, inputs: Tensor) -> Tensor:
        """float64 [n], from the records; on a grid that of whole steps, without the rounding of either."""
        if self.on is not None:
            return norms(self.on.change(inputs, self.x), self.norm)
        return norms(inputs.double() - self.x.double(), self.norm)

    def near_enough(self, distances: Tensor) -> Tensor:
        """bool [n]: within epsilon, where there is one; a whole number of steps may miss it by rounding alone, and an
        L2 distance is none.
        """
        if self.epsilon is None:
            return torch.ones_like(distances, dtype=torch.bool)
        if self.on is None:
            return distances <= self.epsilon
        return distances <= (self.epsilon * (1 + EXACT) if self.norm == "l2" else self.epsilon + NEAR * self.on.step)

    @property
    def below_grid(self) -> bool:
        """Whether epsilon is less than a step of the grid, so that there is nothing within it but the record."""
        if self.on is None or self.epsilon is None or self.norm == "l0":
            return False
        return self.epsilon < (1 - NEAR) * self.on.step
