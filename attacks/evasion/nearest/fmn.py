"""Fast Minimum-Norm (Pintor et al. 2021, arXiv:2102.12827), for L-inf, L2 and L1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....training.ball import SMALLEST, per_record
from ..ascent.gradients import Gradients
from .found import Distance, Nearest, norms

DUAL: dict[Distance, Distance] = {"linf": "l1", "l2": "l2", "l1": "linf"}
STEP = (1.0, 0.01)  # length of a step at the beginning and at the end (alpha in the paper), of the longest:
REACH = 5.0  # times the distance at which a linear model would answer otherwise, at most the width of the limits
SHRINK = (0.05, 0.001)  # share that the radius changes by (gamma in the paper)


def fmn(model: Gradients, y: Tensor, nearest: Nearest, steps: int, start: Tensor | None = None) -> None:
    """Steps along the gradient of the margin inside a ball that shrinks while the input is adversarial, else grows.

    Unlike in the paper, no step leads out of the limits: where many elements are at one, as the background of an image
    is, most of it would be cut off again.

    Args:
        model: ascends minus the margin; y: int64 [n], as `Gradients` takes it.
        nearest: what it finds is offered to.
        start: [n, *shape], where it begins; None: at the records.
    """
    norm, width = nearest.distance, (nearest.high - nearest.low).amax()
    change = torch.zeros_like(nearest.center) if start is None else start - nearest.center
    radius = torch.full((len(y),), torch.inf, device=y.device)
    best = torch.full_like(radius, torch.inf)
    for step in range(steps):
        x = nearest.inside(change)
        gradient, margin, _, _ = model(x, y)
        gradient = nearest.free(x, gradient.nan_to_num(0.0, 0.0, 0.0))
        wrong = nearest.offer(x, margin < 0)
        length = norms(x - nearest.center, norm)
        best = torch.where(wrong, torch.minimum(best, length), best)
        share = cosine(*SHRINK, step / steps)
        ahead = length + margin.clamp_min(0) / norms(gradient, DUAL[norm]).clamp_min(SMALLEST)
        outside = torch.where(best.isfinite(), radius, ahead) * (1 + share)  # a little beyond
        radius = torch.where(wrong, torch.minimum(radius, best) * (1 - share), outside)
        if step == 0:  # the distance to the boundary of a linear model, as long as a step in L2
            far = (margin.abs() / norms(gradient, DUAL[norm]).clamp_min(SMALLEST)) * (
                gradient[0].numel() ** 0.5 if norm == "linf" else 1.0
            )
            longest = torch.minimum(REACH * far, width)
        size = per_record(longest * cosine(*STEP, step / steps), x)
        direction = gradient / per_record(norms(gradient, "l2").clamp_min(SMALLEST), gradient)
        change = project(x - nearest.center + size * direction, radius, norm)
    x = nearest.inside(change)
    nearest.offer(x, model.margins(x, y) < 0)


def cosine(first: float, last: float, done: float) -> float:
    """From the first to the last on half a wave, at the share `done` of the way."""
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def project(change: Tensor, radius: Tensor, norm: Distance) -> Tensor:
    """The nearest change [n, *shape] that is no longer than `radius`, [n]."""
    wide = per_record(radius, change)
    if norm == "linf":
        return torch.maximum(torch.minimum(change, wide), -wide)
    if norm == "l2":
        return change * (wide / per_record(norms(change, "l2"), change).clamp_min(SMALLEST)).clamp_max(1)
    return onto_l1(change.flatten(1), radius).view_as(change)


def onto_l1(change: Tensor, radius: Tensor) -> Tensor:
    """Euclidean projection onto the L1 ball (Duchi et al. 2008): [n, d] and [n]."""
    sizes = change.abs().sort(dim=1, descending=True).values
    excess = sizes.cumsum(1) - radius[:, None]
    ranks = torch.arange(1, change.shape[1] + 1, device=change.device)
    count = (sizes * ranks > excess).sum(1).clamp_min(1)
    cut = (excess.gather(1, count[:, None] - 1) / count[:, None]).clamp_min(0)
    inside = change.abs().sum(1) <= radius
    return torch.where(inside[:, None], change, change.sign() * (change.abs() - cut).clamp_min(0))
