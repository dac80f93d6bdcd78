"""The set an adversarial input must lie in: within epsilon of its record and the data's bounds.

Epsilon and every step size count in units of [0, 1] pixels; `Bounds.scale` turns them into units of the data, channel
by channel. The L2 norm is measured in [0, 1] units too, so one epsilon means the same for any scaling of the data. What
`Bounds` holds stays as it is in the record, and whole numbers stay whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..targets.data.records import Bounds

Norm = Literal["linf", "l2"]

TOLERANCE = 1e-6  # of the membership check, in [0, 1] units
SMALLEST = 1e-30  # below it a vector has no direction
EXACT = 1e-7  # of epsilon: what a decimal fraction of it may be off by
LEFT_OUT = 8  # rounds in which coordinates that still fit are taken after one that does not


@dataclass(frozen=True, eq=False)
class Ball:
    """One ball per record, cut off at the bounds.

    Args:
        norm: "linf" or "l2".
        epsilon: radius in [0, 1] units.
        center: the clean records, float32 [n, *shape], within `bounds`.
        bounds: what an input may be, on center's device.
    """

    norm: Norm
    epsilon: float
    center: Tensor
    bounds: Bounds

    @property
    def scale(self) -> Tensor:
        """What an epsilon of 1 is in units of the data; broadcasts against `center`."""
        return self.bounds.scale

    def take(self, index: Tensor) -> Ball:
        """The balls at `index` (int64 or bool [n])."""
        return Ball(self.norm, self.epsilon, self.center[index], self.bounds)

    def project(self, x: Tensor) -> Tensor:
        """Inputs inside the ball near `x` [n, *shape]: shrunk to the radius, then clamped to the bounds.

        For L-inf this is the nearest point. For L2 the clamp comes second, as in AutoAttack; it only moves towards the
        center, so the result stays inside both. Whole numbers are rounded to the nearest that is inside (`steps_inside`
        for L2).
        """
        if self.bounds.held is not None:
            x = torch.where(self.bounds.held, self.center, x)
        if self.norm == "linf":
            return self._rounded(torch.clamp(x, *self._ends))
        change = (x - self.center) / self.bounds.scale
        shrink = (self.epsilon / l2_norm(change).clamp_min(SMALLEST)).clamp_max(1)
        return self._rounded(self.bounds.clamp(self.center + change * shrink * self.bounds.scale))

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest values inside an L-inf ball, like `center`."""
        radius = self.epsilon * self.bounds.scale
        least = torch.maximum(self.center - radius, self.bounds.low)
        return least, torch.minimum(self.center + radius, self.bounds.high)

    def _rounded(self, x: Tensor) -> Tensor:
        """x [n, *shape], inside, with whole numbers where an input has them (the center has them there)."""
        if self.bounds.whole is None:
            return x
        change = x - self.center
        if self.norm == "linf":
            most = torch.floor((self.epsilon + TOLERANCE) * self.bounds.scale).expand_as(x)
            steps = torch.maximum(torch.minimum(torch.round(change), most), -most)
        else:
            units = self.bounds.scale.expand(x.shape[1:]).flatten()
            whole = self.bounds.whole.expand(x.shape[1:]).flatten()
            steps = steps_inside(change.flatten(1), whole, units, self.epsilon).view_as(x)
        inside = torch.maximum(torch.minimum(self.center + steps, self.bounds.high.floor()), self.bounds.low.ceil())
        return torch.where(self.bounds.whole, inside, x)

    def step(self, x: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """The projection of one steepest-ascent step: sign of the gradient for L-inf, its direction for L2.

        Args:
            gradient: of the loss with respect to x, [n, *shape]; a zero or non-finite one moves nothing.
            size: in [0, 1] units; a number, or [n, 1, ...] for a size per record.
        """
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        if self.bounds.held is not None:
            gradient = gradient.masked_fill(self.bounds.held, 0)
        if self.norm == "linf":
            length = size * self.bounds.scale
            if self.bounds.whole is not None:  # a shorter step would be rounded away
                length = torch.where(self.bounds.whole, torch.clamp_min(length, 1), length)
            return self.project(x + length * gradient.sign())
        gradient = gradient * self.bounds.scale  # the gradient with respect to the input in [0, 1] units
        gradient = gradient / largest(gradient).clamp_min(SMALLEST)  # squares of tiny gradients underflow in float32
        direction = gradient / l2_norm(gradient).clamp_min(SMALLEST)
        moved = size * self.bounds.scale * direction
        if self.bounds.whole is not None:  # a step that moves none of them by one would be rounded away
            furthest = largest(torch.where(self.bounds.whole, moved, 0))
            longer = (1 / furthest.clamp_min(SMALLEST)).clamp_min(1)
            moved = torch.where(self.bounds.whole, moved * longer, moved)
        return self.project(x + moved)

    def random_start(self, noise: Tensor) -> Tensor:
        """A starting point from uniform noise in [0, 1), [n, *shape]: uniform in the cube, or on the sphere for L2."""
        if self.norm == "linf":
            return self.project(self.center + (2 * noise - 1) * self.epsilon * self.bounds.scale)
        gaussian = torch.special.ndtri(noise.clamp(1e-6, 1 - 1e-6))
        if self.bounds.held is not None:
            gaussian = gaussian.masked_fill(self.bounds.held, 0)
        direction = gaussian / l2_norm(gaussian).clamp_min(SMALLEST)
        return self.project(self.center + direction * self.epsilon * self.bounds.scale)

    def contains(self, x: Tensor) -> Tensor:
        """bool [n]: whether `x` is finite, within the bounds and within epsilon, up to `tolerance`; what is held equals
        the record's to the bit, and whole numbers are whole.
        """
        change = (x - self.center) / self.bounds.scale
        distance = largest(change) if self.norm == "linf" else l2_norm(change)
        outside = ((x - self.bounds.clamp(x)) / self.bounds.scale).abs()
        # NaN compares false, so a non-finite input is outside
        inside = (distance.flatten() <= self.epsilon + self.tolerance) & (outside.flatten(1) <= TOLERANCE).all(1)
        if self.bounds.held is not None:
            inside &= ((x == self.center) | ~self.bounds.held).flatten(1).all(1)
        if self.bounds.whole is not None:
            inside &= ((x == x.round()) | ~self.bounds.whole).flatten(1).all(1)
        return inside

    @cached_property
    def tolerance(self) -> float:
        """`TOLERANCE`, and what rounding an input to float32 can add: more where the bounds lie far from zero."""
        largest_value = torch.maximum(self.bounds.low.abs(), self.bounds.high.abs())
        rounding = float((largest_value / self.bounds.scale).max()) * torch.finfo(torch.float32).eps
        coordinates = self.center[0].numel() if len(self.center) else 1
        return TOLERANCE + rounding * (1.0 if self.norm == "linf" else coordinates**0.5)


def l2_norm(x: Tensor) -> Tensor:
    """Per record, [n, 1, ...] so that it broadcasts against x [n, *shape]."""
    return per_record(torch.linalg.vector_norm(x.flatten(1), dim=1), x)


def largest(x: Tensor) -> Tensor:
    """The largest absolute value per record, [n, 1, ...]."""
    return per_record(x.flatten(1).abs().amax(1), x)


def per_record(values: Tensor, x: Tensor) -> Tensor:
    """values [n] as [n, 1, ...], to broadcast against x [n, *shape]."""
    return values.view(-1, *([1] * (x.dim() - 1)))


def steps_inside(change: Tensor, whole: Tensor, units: Tensor, epsilon: float) -> Tensor:
    """Whole steps near `change` whose length is at most epsilon (L2), to the last one.

    All are rounded towards zero first; then those go up that come nearest by it for what they add to the length. That
    is the nearest point of all but for a few records (a knapsack), and never one farther than rounding to zero gives.

    Args:
        change: float32 [n, d], at most epsilon long but for rounding.
        whole: bool [d], the coordinates that count in steps of 1; the others stay as they are.
        units: [d], the length of a change of 1 is 1 / units.
    """
    weight = units.double().reciprocal().square()
    down = torch.where(whole, change.trunc(), change)
    limit = (epsilon * (1 + EXACT)) ** 2
    over = (down.double().square() * weight).sum(1) > limit  # float32 may have added a step to a whole number
    down = torch.where(over[:, None] & whole, (change * (1 - 1e-4)).trunc(), down)
    left = limit - (down.double().square() * weight).sum(1)
    cost = (2 * down.abs().double() + 1) * weight
    gain = (2 * (change.abs() - down.abs()).double() - 1) * weight
    waiting = whole & (gain > 0)
    order = (gain / cost).masked_fill(~waiting, -torch.inf).argsort(dim=1, descending=True, stable=True)
    cost, waiting = cost.gather(1, order), waiting.gather(1, order)
    up = torch.zeros_like(waiting)
    for _ in range(LEFT_OUT):
        tried = waiting & (cost <= left[:, None])
        if not tried.any():
            break
        taken = tried & (torch.where(tried, cost, 0).cumsum(1) <= left[:, None])
        up, waiting = up | taken, tried & ~taken
        left = left - torch.where(taken, cost, 0).sum(1)
    return down + torch.zeros_like(up).scatter(1, order, up) * change.sign()
