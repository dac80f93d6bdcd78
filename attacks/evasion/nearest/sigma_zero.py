"""Sigma-zero (Cina et al. 2024, arXiv:2402.01879): the fewest elements changed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....training.ball import SMALLEST, largest, per_record
from ..ascent.gradients import Gradients
from .found import Nearest

SMOOTH = 1e-3  # sigma: change^2 / (change^2 + sigma) stands for "is not 0"
STEP = 1.0  # at the beginning, in widths of the limits; it falls to nothing
CUT, CUT_STEP = 0.3, 0.01  # changes below are set to 0, in widths; and by how much that moves at a time


def sigma_zero(model: Gradients, y: Tensor, nearest: Nearest, steps: int) -> None:
    """Descends the margin, where it is above zero, and a smooth count of the changed elements; small changes go.

    Arguments as for `fmn`.
    """
    width = nearest.high - nearest.low
    count = nearest.center[0].numel()
    change = torch.zeros_like(nearest.center)  # in widths
    cut = torch.full((len(y),), CUT, device=y.device)
    for step in range(steps + 1):
        x = nearest.inside(change * width)
        gradient, margin, _, _ = model(x, y)
        wrong = nearest.offer(x, margin < 0)
        if step == steps:
            return
        gradient = nearest.free(x, gradient.nan_to_num(0.0, 0.0, 0.0)) * width
        away = torch.where(per_record(wrong, gradient), 0.0, gradient)
        away = away / largest(away).clamp_min(SMALLEST)
        fewer = 2 * change * SMOOTH / (change.square() + SMOOTH).square() / count
        total = away - fewer
        size = STEP * (1 + math.cos(math.pi * step / steps)) / 2
        change = change + size * total / largest(total).clamp_min(SMALLEST)
        change = (nearest.inside(change * width) - nearest.center) / width.clamp_min(SMALLEST)
        cut = (cut + torch.where(wrong, CUT_STEP, -CUT_STEP) * size).clamp_min(0)
        change = torch.where(change.abs() < per_record(cut, change), 0.0, change)
