"""Decoupled direction and norm (Rony et al. 2019, arXiv:1811.09600), for L2."""

from __future__ import annotations

import torch
from torch import Tensor

from ....training.ball import SMALLEST, per_record
from ..ascent.gradients import Gradients
from .fmn import cosine
from .found import Nearest, norms

FIRST = 0.06  # radius at the beginning, in diagonals of the limits
STEP = (1.0, 0.05)  # length of a step at the beginning and at the end, in radii
SHRINK = 0.05  # share by which the radius changes


def ddn(model: Gradients, y: Tensor, nearest: Nearest, steps: int) -> None:
    """Steps along the gradient on a sphere that shrinks while the input is adversarial, else grows.

    Unlike in the paper, a step is as long as a share of the radius, so that any unit of the inputs will do.

    Args:
        model: ascends any loss; y: int64 [n], as `Gradients` takes it.
        nearest: what it finds is offered to.
    """
    change, width = torch.zeros_like(nearest.center), norms(nearest.high - nearest.low, "l2")
    radius = FIRST * width
    for step in range(steps):
        x = nearest.inside(change)
        gradient, margin, _, _ = model(x, y)
        wrong = nearest.offer(x, margin < 0)
        gradient = nearest.free(x, gradient.nan_to_num(0.0, 0.0, 0.0))
        if step > 0:
            radius = (radius * torch.where(wrong, 1 - SHRINK, 1 + SHRINK)).clamp_max(width)
        length = radius * cosine(*STEP, step / steps) / norms(gradient, "l2").clamp_min(SMALLEST)
        moved = x - nearest.center + per_record(length, x) * gradient
        change = moved * per_record(radius / norms(moved, "l2").clamp_min(SMALLEST), x)
    x = nearest.inside(change)
    nearest.offer(x, model.margins(x, y) < 0)
