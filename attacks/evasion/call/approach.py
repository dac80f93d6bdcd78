"""From any adversarial input of a record to the nearest one that can be found."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....targets.model import Target
from ...access import Ledger
from ..ascent.gradients import Gradients
from ..ascent.losses import Goal, reached
from ..nearest.fmn import fmn
from ..nearest.found import Distance, Nearest
from ..nearest.sigma_zero import sigma_zero


def approach(
    target: Target,
    twin: nn.Module | None,
    x: Tensor,
    wanted: Tensor,
    goal: Goal,
    limits: tuple[Tensor, Tensor],
    distance: Distance,
    known: Tensor,
    success: Tensor,
    *,
    steps: int,
    classes: int,
    batch: int,
    ledger: Ledger,
) -> tuple[Tensor, Tensor]:
    """The nearest adversarial inputs, float32 [n, *shape], and which records have one, bool [n].

    Args:
        x, wanted: the records and the classes to leave or to reach; limits: broadcastable to x.
        known, success: adversarial inputs found before, and where they are that.
        steps: of each search; classes: so many of the nearest ones are tried as targets, one by one; batch: records at
            a time. Without a twin only the way back to the record is tried.
    """
    best, found = known.clone(), success.clone()
    low, high = (limit.expand_as(x) for limit in limits)
    for rows in torch.arange(len(x), device=x.device).split(batch):

        def right(inputs: Tensor, some: Tensor, rows: Tensor = rows) -> Tensor:
            ledger.queries += len(inputs)
            return reached(target.logits(inputs), wanted[rows[some]], goal)

        nearest = Nearest(x[rows], low[rows], high[rows], distance, right)
        nearest.offer(known[rows], success[rows])
        if twin is not None:
            model = Gradients(twin, "margin", ledger, goal=goal)
            search = sigma_zero if distance == "l0" else fmn
            search(model, wanted[rows], nearest, steps)
            if goal == "untargeted":
                ranked = model.ranked(x[rows], wanted[rows])
                towards = Gradients(twin, "margin", ledger, goal="targeted")
                for place in range(min(classes, ranked.shape[1])):
                    search(towards, ranked[:, place], nearest, steps)
        nearest.halve()
        found[rows] = nearest.length.isfinite()
        best[rows] = torch.where(found[rows].view(-1, *[1] * (x.dim() - 1)), nearest.x, best[rows])
    return best, found
