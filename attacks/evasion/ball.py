"""The sets that attacks search: the ball around each record, which trainings search too, or a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...training.ball import Ball, Norm


@dataclass(frozen=True, eq=False)
class Box:
    """One box per record, to the bit: every element has a smallest and a largest value of its own.

    It stands where an L-inf ball does; its radius is half of each element's width.

    Args:
        low, high: float32 [n, *shape], low <= high, finite.
        center: [n, *shape], inside: where an attack starts that does not start at random.
        limits: the smallest and the largest value of an input outside of the box, float32 [n, *shape] or one number;
            None: nothing outside makes sense.
    """

    low: Tensor
    high: Tensor
    center: Tensor
    limits: tuple[Tensor, Tensor] | None = None
    norm: ClassVar[Norm] = "linf"
    epsilon: ClassVar[float] = 0.5  # in units of `scale`

    @property
    def scale(self) -> Tensor:
        """The widths of each element, [n, *shape]."""
        return self.high - self.low

    def take(self, index: Tensor) -> Box:
        """The boxes at `index` (int64 or bool [n])."""
        limits = None if self.limits is None else (self._rows(self.limits[0], index), self._rows(self.limits[1], index))
        return Box(self.low[index], self.high[index], self.center[index], limits)

    def _rows(self, limit: Tensor, index: Tensor) -> Tensor:
        return limit[index] if limit.shape == self.low.shape else limit

    def project(self, x: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(x, self.high), self.low)

    def step(self, x: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """See `Ball.step`; size is in widths of the box."""
        return self.project(x + size * self.scale * gradient.nan_to_num(0.0, 0.0, 0.0).sign())

    def random_start(self, noise: Tensor) -> Tensor:
        """Uniform in the box, from uniform noise in [0, 1)."""
        return self.project(self.low + noise * self.scale)

    def contains(self, x: Tensor) -> Tensor:
        """bool [n]: whether each element lies within its limits, without any tolerance."""
        return ((x >= self.low) & (x <= self.high)).flatten(1).all(1)


Region = Ball | Box


def whole_range(norm: Norm, shape: tuple[int, ...]) -> float:
    """The epsilon at which the ball around any record of `shape` holds every input within the bounds."""
    return 1.0 if norm == "linf" else float(torch.Size(shape).numel()) ** 0.5
