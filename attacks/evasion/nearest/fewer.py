"""Fewer elements than were found (L0): some are given back, and the others make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ....training.ball import largest
from ..ascent.gradients import Gradients
from .found import Nearest
from .greedy import gains, towards

MENDING = 4  # steps that the elements left make, the first of them to their limits


def fewer(model: Gradients, y: Tensor, nearest: Nearest, tries: int, *, swap: bool = False) -> None:
    """Gives back the element that matters least by the slope there, or the next one where that was in vain.

    Arguments as for `fmn`, and:

    Args:
        tries: of each record, at most as many as it has changed elements after the last success; a try takes `MENDING`
            gradients and one more.
        swap: gives two back, the one whose turn it is and the least of the others, and takes a new one.
    """
    turn = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    for _ in range(tries):
        length = nearest.length
        rows = (length.isfinite() & (length >= 2) & (turn < length)).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        some = nearest.take(rows)
        x, center = some.x, some.center
        gradient, _, _, _ = model(x, y[rows])
        changed = x != center
        worth = (gradient.nan_to_num(0.0, 0.0, 0.0) * (x - center)).masked_fill(~changed, torch.inf).flatten(1)
        order = worth.argsort(dim=1)
        kept = changed.flatten(1).scatter(1, order.gather(1, turn[rows, None]), False)
        if swap:
            weakest = torch.where(turn[rows] == 0, 1, 0)
            kept = kept.scatter(1, order.gather(1, weakest[:, None]), False)
            trial = torch.where(kept.view_as(x), x, center)
            slope, _, _, _ = model(trial, y[rows])
            new = gains(trial, slope, some).masked_fill(kept, -1.0).scatter(1, order.gather(1, turn[rows, None]), -1.0)
            kept = kept.scatter(1, new.argmax(1, keepdim=True), True)
        free = kept.view_as(x)
        trial = torch.where(free, x, center)
        for step in range(MENDING):
            gradient, margin, _, _ = model(trial, y[rows])
            some.offer(trial, margin < 0)
            if step == 0:
                moved = towards(gradient, some)
            else:
                width = (some.high - some.low) / 2**step
                unit = gradient / largest(gradient * free).clamp_min(torch.finfo(torch.float32).tiny)
                moved = some.inside(trial + width * unit.clamp(-1, 1) - center)
            trial = torch.where(free, moved.nan_to_num(0.0), trial)
        some.offer(trial, model.margins(trial, y[rows]) < 0)
        better = some.length < length[rows]
        nearest.put(rows, some)
        turn[rows] = torch.where(better, 0, turn[rows] + 1)
