"""Carlini & Wagner (2017, arXiv:1608.04644), for L2."""

from __future__ import annotations

import torch
from torch import Tensor

from ....training.ball import per_record
from ..ascent.gradients import Gradients
from .found import Nearest

INSIDE = 0.99  # of the limits: further out the change of variables has next to no slope, as on the background of images
RATE = 0.1  # of Adam
FIRST = 1.0  # weight of the margin beside the distance
ROUNDS = 5  # of the search for that weight: halved or times ten, then between the two


def carlini_wagner(model: Gradients, y: Tensor, nearest: Nearest, steps: int, start: Tensor | None = None) -> None:
    """Squared distance plus a weight times what is left of the margin, by Adam in a variable without limits.

    Arguments as for `fmn`; `steps` are those of all rounds together.
    """
    center, low = nearest.center, nearest.low
    half = (nearest.high - low) / 2
    middle = low + half
    first = center if start is None else start
    share = (first - middle) / half.clamp_min(torch.finfo(torch.float32).tiny)
    unbent = torch.atanh(share.clamp(-INSIDE, INSIDE))
    weight = torch.full((len(y),), FIRST, device=y.device)
    least, most = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    for _ in range(ROUNDS):
        free, reached = unbent.clone(), torch.zeros(len(y), dtype=torch.bool, device=y.device)
        mean, square = torch.zeros_like(free), torch.zeros_like(free)
        for step in range(1, max(1, steps // ROUNDS) + 1):
            bent = free.tanh()
            x = torch.where(free == unbent, first, middle + half * bent)
            gradient, margin, _, _ = model(x, y)
            reached |= nearest.offer(x, margin < 0)
            pull = per_record(weight * (margin > 0), x) * gradient.nan_to_num(0.0, 0.0, 0.0)
            slope = (2 * (x - center) - pull) * half * (1 - bent.square())
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope.square()
            size = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            free = free - RATE * size
        most, least = torch.where(reached, weight.minimum(most), most), torch.where(reached, least, weight)
        weight = torch.where(most.isinf(), 10 * weight, (least + most) / 2)
