"""The fewest elements changed (L0), one by one, each to a limit: those that gain most by their slope are tried.

Pixels by their saliency are Papernot et al.'s (2016, arXiv:1511.07528); here the model is asked about the best of them,
and several sets go on side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....targets.model import FEW
from ..ascent.gradients import Gradients
from .found import Nearest


def greedy(model: Gradients, y: Tensor, nearest: Nearest, steps: int, *, beams: int, width: int) -> None:
    """Adds elements until the goal is reached, or as many are changed as in what is known; arguments as for `fmn`, and:

    Args:
        steps: elements at most.
        beams: sets of elements of each record that go on; width: further elements that are tried with each of them.
    """
    left = torch.arange(len(y), device=y.device)
    sets = nearest.center.unsqueeze(1)
    for count in range(1, steps + 1):
        stay = nearest.length[left] > count
        left, sets = left[stay], sets[stay]
        if len(left) == 0:
            return
        records, each = sets.shape[:2]
        x, rows = sets.flatten(0, 1), left.repeat_interleave(each)
        some = nearest.take(rows)
        gradient = torch.cat([model(*part)[0] for part in zip(x.split(len(y)), y[rows].split(len(y)), strict=True)])
        new = gains(x, gradient, some).masked_fill((x != some.center).flatten(1), -1.0)
        tried = new.topk(min(width, new.shape[1]), dim=1).indices.unsqueeze(2)
        ends = towards(gradient, some).flatten(1).gather(1, tried.squeeze(2)).unsqueeze(2)
        trials = x.flatten(1).unsqueeze(1).repeat(1, tried.shape[1], 1).scatter(2, tried, ends)
        trials = trials.view(records, -1, *x.shape[1:])
        together = trials.flatten(0, 1).split(max(FEW, len(y)))
        own = y[left].repeat_interleave(trials.shape[1]).split(max(FEW, len(y)))
        margin = torch.cat([model.margins(*part) for part in zip(together, own, strict=True)]).view(records, -1)
        order = margin.argsort(dim=1)
        ordered = margin.gather(1, order)
        again = torch.nn.functional.pad(ordered.diff(dim=1) == 0, (1, 0))  # the same set, in another order
        order = order.gather(1, ordered.masked_fill(again, torch.inf).argsort(dim=1, stable=True)[:, :beams])
        sets = trials[torch.arange(records, device=y.device)[:, None], order]
        some = nearest.take(left)
        some.offer(sets[:, 0], ordered[:, 0] < 0)
        nearest.put(left, some)


def gains(x: Tensor, gradient: Tensor, nearest: Nearest) -> Tensor:
    """[n, elements]: what the linear model gains by moving each to the limit that its slope points at."""
    room = torch.where(gradient > 0, nearest.high - x, x - nearest.low)
    return (gradient.nan_to_num(0.0, 0.0, 0.0).abs() * room).flatten(1)


def towards(gradient: Tensor, nearest: Nearest) -> Tensor:
    """The limits that the gradient points at, [n, *shape]."""
    return torch.where(gradient > 0, nearest.high, nearest.low)
