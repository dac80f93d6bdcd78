"""The fewest elements changed (L0), one by one: each to the limit that gains most, as Papernot et al. 2016
(arXiv:1511.07528) choose pixels by their saliency.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ascent.gradients import Gradients
from ..ball import per_record
from .found import Nearest


def greedy(model: Gradients, y: Tensor, nearest: Nearest, steps: int, first: int = 0) -> None:
    """Adds elements until the goal is reached, or as many are changed as in what is known; arguments as for `fmn`, and:

    Args:
        steps: elements at most.
        first: which one it begins with, counted from the one of the largest gain; the others follow from it.
    """
    x, done = nearest.center, torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for count in range(steps + 1):
        gradient, margin, _, _ = model(x, y)
        wrong = nearest.offer(x, margin < 0)
        done |= wrong | (nearest.length <= count + 1)
        if count == steps or bool(done.all()):
            return
        changed = (x != nearest.center).flatten(1)
        pick = gains(x, gradient, nearest).masked_fill(changed, -1.0)
        ranked = pick.topk(min(first + 1, pick.shape[1]), dim=1).indices if count == 0 else pick.argmax(1, keepdim=True)
        moved = changed.scatter(1, ranked[:, -1:], True).view_as(x) & ~per_record(done, x)
        x = torch.where(moved, towards(gradient, nearest), x)


def gains(x: Tensor, gradient: Tensor, nearest: Nearest) -> Tensor:
    """[n, elements]: what the linear model gains by moving each to the limit that its slope points at."""
    room = torch.where(gradient > 0, nearest.high - x, x - nearest.low)
    return (gradient.nan_to_num(0.0, 0.0, 0.0).abs() * room).flatten(1)


def towards(gradient: Tensor, nearest: Nearest) -> Tensor:
    """The limits that the gradient points at, [n, *shape]."""
    return torch.where(gradient > 0, nearest.high, nearest.low)
