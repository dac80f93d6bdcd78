"""Inputs that are whole steps of a grid, as 8-bit pixels are: searched between its points, and judged on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....targets.errors import InputError
from ....targets.model import Target
from ..ball import Box, Region
from .attackable import Attackable

NEAR = 0.01  # of a step: so far beside the grid a value may be by rounding to float32


@dataclass(frozen=True)
class Grid:
    """Every whole number of steps from the origin, in the units of the records."""

    step: float
    origin: float

    def places(self, x: Tensor) -> Tensor:
        """float64 like x: how many steps each value is from the origin, to the nearest whole one."""
        return self._steps(x).round()

    def values(self, places: Tensor) -> Tensor:
        """float32 like places, the float nearest to each point."""
        return (places.double() * self.step + self.origin).float()

    def onto(self, x: Tensor) -> Tensor:
        """The nearest values on the grid, float32 like x."""
        return self.values(self.places(x))

    def over(self, opened: Attackable) -> Attackable:
        """The model on the nearest points of the grid; its gradients are straight-through."""
        twin = None if opened.twin is None else OnGridModule(opened.twin, self)
        return Attackable(OnGridTarget(opened.deployed, self), twin)

    def box(self, x: Tensor, low: Tensor, high: Tensor, radius: float | None) -> Box:
        """What of the grid lies within the limits, and within `radius` of each record in every element.

        A point that is beside a limit by rounding alone counts, as the limit itself.
        """
        here = self.places(x)
        least, most = (self._steps(low) - NEAR).ceil(), (self._steps(high) + NEAR).floor()
        if radius is not None:
            steps = math.floor(radius / self.step + NEAR)
            least, most = torch.maximum(least, here - steps), torch.minimum(most, here + steps)
        low, high = low.expand_as(x), high.expand_as(x)
        ends = (torch.maximum(torch.minimum(self.values(end), high), low) for end in (least, here, most))
        lowest, center, highest = ends
        return Box(torch.minimum(lowest, x), torch.maximum(highest, x), center)

    def back(self, found: Tensor, x: Tensor, region: Region) -> Tensor:
        """What was found, float32 [n, *shape], on the grid; where that is the record's own point, its own bits."""
        same = self.places(found) == self.places(x)
        return torch.where(same, x, region.project(self.onto(found)))

    def change(self, found: Tensor, x: Tensor) -> Tensor:
        """float64 like x, in its units: whole steps, without the rounding of either."""
        return (self.places(found) - self.places(x)) * self.step

    def _steps(self, x: Tensor) -> Tensor:
        return (x.double() - self.origin) / self.step


def grid_of(x: Tensor, step: float, lower: float | Tensor | None) -> Grid:
    """The grid that the records lie on, whose origin is 0, or `lower` where that is one number.

    Raises:
        InputError: a record lies beside it.
    """
    if not 0 < step < math.inf:
        raise InputError(
            f"grid is {step}. It is the step from one value to the next, a finite number above 0: 1 / 255 for 8-bit "
            "pixels scaled to [0, 1], 1 for pixels from 0 to 255."
        )
    several = isinstance(lower, Tensor) and lower.numel() > 1
    grid = Grid(float(step), 0.0 if lower is None or several else float(lower))
    steps = (x.double() - grid.origin) / grid.step
    off = (steps - steps.round()).abs().flatten(1).amax(1) > NEAR
    if off.any():
        first = int(off.nonzero()[0])
        value = float(x[first].flatten()[(steps - steps.round())[first].abs().flatten().argmax()])
        raise InputError(
            f"Record {first} is not on the grid: {value:.7g} is no whole number of steps of {grid.step:.7g} from "
            f"{grid.origin:.7g}. Round the records to it, or give the step that they have."
        )
    return grid


class OnGridTarget:
    """A model that is asked about the nearest points of a grid."""

    def __init__(self, target: Target, grid: Grid) -> None:
        self._target, self._grid, self.queries = target, grid, 0

    def logits(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        return self._target.logits(self._grid.onto(x))


class OnGridModule(nn.Module):
    """A module on the nearest points of a grid, with the gradient that it has there."""

    def __init__(self, module: nn.Module, grid: Grid) -> None:
        super().__init__()
        self.module, self.grid = module, grid

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.module(self.grid.onto(x.detach()) + (x - x.detach()))
        return answers
