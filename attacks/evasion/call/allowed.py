"""Which inputs an attacker may use: within epsilon of the record, and within limits, to the bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....targets.data.records import Bounds
from ....targets.errors import InputError
from ....training.ball import Ball
from ..ball import Box, Region
from ..nearest.found import Distance
from .grid import Grid


def checked_records(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if not x.is_floating_point() or x.dim() < 2 or len(x) == 0 or y.shape != (len(x),) or y.is_floating_point():
        raise InputError(
            f"x is {x.dtype} of shape {list(x.shape)} and y {y.dtype} of shape {list(y.shape)}. Records are float32 "
            "[n, *shape] and classes int64 [n]."
        )
    if not torch.isfinite(x).all():
        raise InputError("x holds values that are not finite. Leave those records out.")
    return x.detach().float(), y.detach().to(torch.int64)


def limits_of(x: Tensor, lower: float | Tensor | None, upper: float | Tensor | None) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each element, float32 broadcastable to x."""
    if (lower is None or upper is None) and not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError("x is not within [0, 1]. Give lower and upper, the smallest and largest value of an input.")
    low, high = (
        torch.as_tensor(default if given is None else given, dtype=torch.float32, device=x.device)
        for given, default in ((lower, 0.0), (upper, 1.0))
    )
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all() & (low <= high).all()):
        raise InputError("lower and upper are no limits. They must be finite, and lower nowhere above upper.")
    try:
        inside = (x >= low.expand_as(x)) & (x <= high.expand_as(x))
    except RuntimeError:
        raise InputError(
            f"lower has the shape {list(low.shape)} and upper {list(high.shape)}. Both have to be broadcastable to x, "
            f"{list(x.shape)}."
        ) from None
    if not bool(inside.all()):
        first = int((~inside.flatten(1).all(1)).nonzero()[0])
        raise InputError(f"Record {first} lies outside of lower and upper itself. Give limits around it.")
    return low, high


def region_of(
    x: Tensor,
    norm: Distance,
    epsilon: float | None,
    low: Tensor,
    high: Tensor,
    *,
    any_within: bool,
    on: Grid | None = None,
) -> Region:
    """The allowed set of each record; with `any_within` a box that holds it, of which what is near is sought later.

    On a grid it is a box of the grid's points.
    """
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise InputError(f"epsilon is {epsilon}. It is a finite number above 0, in the units of x.")
    if on is not None:
        return on.box(x, low, high, epsilon if norm == "linf" else None)
    if any_within or norm not in ("linf", "l2"):
        return Box(low.expand_as(x), high.expand_as(x), x)
    if norm == "linf":
        if epsilon is None:
            return Box(low.expand_as(x), high.expand_as(x), x)
        limits = tuple(limit if limit.numel() == 1 else limit.expand_as(x) for limit in (low, high))
        low, high = torch.maximum(low, _rounded(x, -epsilon)), torch.minimum(high, _rounded(x, epsilon))
        return Box(low.expand_as(x), high.expand_as(x), x, (limits[0], limits[1]))
    if epsilon is None or low.numel() > 1 or high.numel() > 1 or not bool(low < high):
        raise InputError("That is not for an L2 distance. Give epsilon and one number each for lower and upper.")
    bounds = Bounds(low.reshape(()), high.reshape(()))
    return Ball(norm, (1 - 1e-6) * epsilon / float(bounds.scale), x, bounds)  # rounding may not lead out of it


def _rounded(x: Tensor, change: float) -> Tensor:
    """x + change, in float32 and no further from x than that."""
    exact = x.double() + change
    near = exact.float()
    beyond = near.double() > exact if change > 0 else near.double() < exact
    return torch.where(beyond, near.nextafter(x), near)
