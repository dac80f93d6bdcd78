"""The nearest point beyond the boundary of a linear model of the margin, again and again (L-inf, L2, L1).

After FAB (Croce & Hein 2020, arXiv:1907.02044), which projects onto the same boundary, with two differences: the model
is trusted only so far from where it was made, in every element, and that shrinks; and each point is the nearest one of
the record within limits and trust, where FAB averages two projections.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....training.ball import SMALLEST, per_record
from ..ascent.gradients import Gradients, usable
from .fmn import DUAL, cosine
from .found import Distance, Nearest, norms

TRUST = 0.02  # at the end, of that at the beginning
GROWTH = 1.15  # of the trust by a step, until the boundary is crossed for the first time
BEYOND = (0.03, 0.002)  # aimed at, past the boundary: share of the margin that an input so far away could change
NOTHING = 1e-4  # of the steepest slope: elements less steep are left alone


def linear(model: Gradients, y: Tensor, nearest: Nearest, steps: int, start: Tensor | None = None) -> None:
    """Arguments as for `fmn`; with a start the trust follows from how far away it is, else from the first model."""
    norm, center = nearest.distance, nearest.center
    x = center if start is None else start
    over = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for step in range(steps):
        gradient, margin, _, _ = model(x, y)
        over |= nearest.offer(x, margin < 0)
        if step == 0:
            trust = _first_trust(nearest, gradient, margin) if start is None else _spread(start - center) / 2
        else:
            trust = trust * torch.where(over, TRUST ** (1 / steps), GROWTH)
        around = per_record(trust, x)
        low, high = torch.maximum(nearest.low, x - around), torch.minimum(nearest.high, x + around)
        further = cosine(*BEYOND, step / steps) * norms(x - center, norm) * norms(gradient, DUAL[norm])
        base = torch.where(per_record(over, x), center, x)
        moved = beyond(base, x, gradient, margin + further, low, high, norm)
        x = torch.where(per_record(usable(gradient), x), moved, x)
    nearest.offer(x, model.margins(x, y) < 0)


def _spread(change: Tensor) -> Tensor:
    return change.flatten(1).abs().amax(1)


def _first_trust(nearest: Nearest, gradient: Tensor, margin: Tensor) -> Tensor:
    """[n]: the largest change of an element on the straight way to the boundary of the first model, twice."""
    slopes = gradient.flatten(1).abs()
    width = _spread(nearest.high - nearest.low)
    if nearest.distance == "l1":
        return width / 2
    if nearest.distance == "linf":
        largest = margin.abs() / slopes.sum(1).clamp_min(SMALLEST)
    else:
        largest = margin.abs() * slopes.amax(1) / slopes.square().sum(1).clamp_min(SMALLEST)
    return torch.minimum(2 * largest, width)


def beyond(
    center: Tensor, x: Tensor, gradient: Tensor, gain: Tensor, low: Tensor, high: Tensor, norm: Distance
) -> Tensor:
    """The point z in low <= z <= high nearest to center with gradient * (z - x) >= gain; without one, the furthest.

    Args:
        center, x, gradient, low, high: [n, *shape], low <= x <= high; gain: [n].
    """
    z = torch.maximum(torch.minimum(center, high), low)
    scale = _spread(gradient).clamp_min(SMALLEST)
    slopes = (gradient / per_record(scale, gradient)).flatten(1)
    need = (gain / scale - (slopes * (z - x).flatten(1)).sum(1)).clamp_min(0)
    steep = slopes.abs()
    room = torch.where(gradient > 0, high - z, z - low).flatten(1) * (steep > NOTHING)
    if norm == "l1":
        steepest, order = steep.sort(dim=1, descending=True)
        ordered = room.gather(1, order)
        gains = steepest * ordered
        rest = (need[:, None] - gains.cumsum(1) + gains).clamp_min(0) / steepest.clamp_min(NOTHING)
        moves = torch.zeros_like(room).scatter(1, order, torch.minimum(rest, ordered))
    else:
        away = (z - center).flatten(1).abs()
        rates = torch.ones_like(steep) if norm == "linf" else steep
        level = _level(steep, rates, away, room, need)
        moves = torch.minimum((level[:, None] * rates - away).clamp_min(0), room)
    return z + (slopes.sign() * moves).view_as(z)


def _level(steep: Tensor, rates: Tensor, away: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """[n]: the smallest level at which the moves `min(max(level * rate - away, 0), room)` gain, times `steep`, `need`.

    What they gain is linear between the levels at which an element starts and stops to move.
    """
    rises = torch.where(room > 0, steep * rates, 0.0)
    divisor = rates.clamp_min(NOTHING)
    ends = torch.cat([torch.where(room > 0, away, 0.0) / divisor, torch.where(room > 0, away + room, 0.0) / divisor], 1)
    levels, order = ends.sort(dim=1)
    rising = torch.cat([rises, -rises], 1).gather(1, order).cumsum(1)
    gained = torch.cat([torch.zeros_like(need)[:, None], (rising[:, :-1] * levels.diff(dim=1)).cumsum(1)], 1)
    last = ((gained < need[:, None]).sum(1, keepdim=True) - 1).clamp_min(0)
    following = (last + 1).clamp_max(levels.shape[1] - 1)
    beyond_last = (need[:, None] - gained.gather(1, last)) / rising.gather(1, last).clamp_min(SMALLEST)
    level = torch.minimum(levels.gather(1, last) + beyond_last, levels.gather(1, following))
    return torch.where(need > 0, level.squeeze(1), 0.0)
