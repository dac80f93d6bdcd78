"""Projected gradient descent from starts at which the answers differ as much as possible, several of them at once."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ...case import Case
from ...effort import Effort
from ..ascent.gradients import Gradients
from ..ascent.losses import Loss
from ..engine import PERTURBERS, Search
from .pgd import CREDIBLE, GradientPerturber, default_step

TOGETHER = 10  # starts of a record at a time: of a few records they cost hardly more than one
PROBES = 2  # the first of them, which half of the records need no more than
EARLY = 0.3  # of the last starts' steps, before a record is called out of their reach
PROSPECT = 1.5  # see `Diversified.out_of_reach`
NEAR, AGREE = 0.25, 2.0  # see `far_from_all`
DEVIATIONS = 10.0  # that the lowest margin of a record's starts lies above zero, where more of them would not help


@PERTURBERS.register
class Diversified(GradientPerturber):
    """PGD from output-diversified starts (Tashiro et al. 2020, arXiv:2003.06878).

    A start goes a few whole steps of the radius in the direction that changes a random combination of the logits most.
    Random inputs all answer alike where a net is flat or its margin has several basins; these do not.

    A record is let go as on a plateau when its starts all came to about the same margin, far from zero. Of 105 boxes
    around digits in which there is nothing to find, 99 are after ten starts; of 25 in which there is, none.
    """

    kind: Literal["diversified"] = "diversified"
    together: ClassVar[int] = TOGETHER
    informs: ClassVar[bool] = True
    loss: Loss = Field("margin", description="what is ascended: cross-entropy, minus the logit margin, or DLR")
    steps: PositiveInt = Field(20, le=100_000, description="gradient steps per restart")
    restarts: PositiveInt = Field(10, le=100_000, description="starts; a fooled record takes no further one")
    start_steps: PositiveInt = Field(2, le=100, description="of a start, each as long as the radius")

    @property
    def effort(self) -> Effort:
        further = max(0, self.restarts - TOGETHER)  # nearly all records are let go before these
        return Effort(gradients=self.steps * (min(self.restarts, TOGETHER) + 0.1 * further))

    def perturb(self, search: Search, case: Case) -> None:
        model = self.model(search, case)
        search.flat[search.active] = True
        reached = search.margin.new_empty(len(search.active), 0)  # [active, starts], the margin each of them came to
        ends = {0, min(PROBES, self.restarts), *range(TOGETHER, self.restarts, TOGETHER), self.restarts}
        for first, end in pairwise(sorted(ends) if len(search.active) else ()):
            lowest, kept = self._ascend(search, model, range(first, end))
            if len(search.active) == 0:
                return
            reached = torch.cat([reached[kept], lowest], dim=1)
            if end == PROBES and self.restarts <= TOGETHER:
                lost = far_from_all(model.margins(search.ball.center, search.y), search.before, reached)
                reached = reached[search.release(lost)]
            if reached.shape[1] >= TOGETHER:
                even = reached.amin(1) > DEVIATIONS * reached.std(1)
                search.plateau[search.active[even]] = True
                reached = reached[search.release(even)]

    def out_of_reach(self, first: Tensor, lowest: Tensor, progress: float) -> Tensor:
        """bool [n]: whether what is left of the last starts will not make the margin of any of them negative.

        As `pgd.hopeless`: what the lowest margin still falls by is at most 1.5 times its fall so far, times the share
        of the steps that are left. Of the nets and records of `apgd.out_of_reach` none of 3,612 is lost that ten starts
        of ten steps fool, and 80 % of the gradients are taken.

        Args:
            first: [n], the mean margin of a record's starts; lowest: [n, starts], the lowest since.
            progress: of the steps, in [0, 1].
        """
        nearest = lowest.amin(1)
        fall = first - nearest
        return (nearest > PROSPECT * (1 - progress) * fall) & (nearest < CREDIBLE * fall)

    def _ascend(self, search: Search, model: Gradients, starts: range) -> tuple[Tensor, Tensor]:
        """One run from each start, and what came of it for the records that it leaves active.

        Returns:
            The lowest margin of each run, [active, starts], and int64 [active], where the records stood before.
        """
        width, device = len(starts), search.y.device
        size = default_step(search.ball.epsilon, self.steps)
        kept = torch.arange(len(search.active), device=device)
        rows = kept.repeat_interleave(width)  # the inputs of a record follow each other
        ball, y = search.ball.take(rows), search.y[rows]
        x = torch.stack([search.start(start) for start in starts], dim=1).flatten(0, 1)
        classes = model.classes(x)
        weights = torch.stack([2 * search.noise((classes,), "direction", start) - 1 for start in starts], dim=1)
        for _ in range(self.start_steps):
            x = ball.step(x, model.towards(x, weights.flatten(0, 1)), search.ball.epsilon)
        lowest, first, gradient = torch.full((len(x),), torch.inf, device=device), x.new_empty(0), x
        judges = starts.stop == self.restarts and self.loss == "margin"

        def keep(stay: Tensor) -> None:
            nonlocal kept, first, x, y, ball, lowest, gradient
            kept, first, wide = kept[stay], first[stay], stay.repeat_interleave(width)
            x, y, ball, lowest, gradient = x[wide], y[wide], ball.take(wide), lowest[wide], gradient[wide]

        for step in range(self.steps + 1):
            if step < self.steps:
                gradient, margin, _, flat = model(x, y)
                search.flat[search.active] &= flat.view(-1, width).all(1)
            else:
                margin = model.margins(x, y)
            lowest = torch.minimum(lowest, margin)
            first = first if step else margin.view(-1, width).mean(1)
            best = margin.view(-1, width).argmin(1)
            rows = best + width * torch.arange(len(best), device=device)
            done = (starts.start + width * step / self.steps) / self.restarts
            stay = search.offer(x[rows], margin[rows], done)
            if stay is not None:
                keep(stay)
            if judges and EARLY * self.steps <= step < self.steps:
                lost = self.out_of_reach(first, lowest.view(-1, width), step / self.steps)
                if lost.any():
                    keep(search.release(lost))
            if len(x) == 0:
                break
            if step < self.steps:
                x = ball.step(x, gradient, size)
        return lowest.view(-1, width), kept


def far_from_all(margin: Tensor, before: Tensor, reached: Tensor) -> Tensor:
    """bool [n]: whether further starts would not help: other parts and the first starts came to about the same margin,
    more than a quarter of its fall above zero, and more than twice as far above as they differ.

    Where it hardly fell, or no other part searched, nothing is judged. Fitted on 11 nets of one small architecture for
    digits at 8x8, where further starts fool 9 of the 2,211 records that PGD and targeted Auto-PGD leave at one radius
    or several: none is lost. Nor is one of 7 among 2,845 on 25 other nets (convolutions with batch norm at 16x16 and
    28x28, some adversarially trained, quantised or pruned; tables; planted false robustness).

    Args:
        margin: [n], of the record; before: [n], the lowest that other parts came to, infinite: none searched; reached:
            [n, starts], the lowest of each start.
    """
    all_ends = torch.cat([before[:, None], reached], dim=1)
    nearest = all_ends.amin(1)
    fall = margin - nearest
    agree = nearest > AGREE * (all_ends.amax(1) - nearest)  # never where one is infinite
    return agree & (nearest > NEAR * fall) & (nearest < CREDIBLE * fall)
