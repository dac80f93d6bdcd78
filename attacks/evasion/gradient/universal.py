"""A universal perturbation (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401): one change for all records."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from ....targets.data.records import Bounds
from ....targets.errors import NotApplicable
from ....targets.form import Array
from ....targets.model import device_of
from ....targets.seeds import derive, uniform
from ....targets.steps import Arrays
from ....training.ball import SMALLEST, Ball, Norm, l2_norm, per_record
from ...access import Access, Ledger
from ...case import Case
from ...effort import Effort
from ..ascent.gradients import Gradients
from ..blocks import at_once, kept_at_cost
from ..engine import PERTURBERS, Perturber, Search

STRIDE = 0.1  # of the radius, that a step is long, at least


@PERTURBERS.register
class Universal(Perturber):
    """One change for all records (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401), crafted on the attacker's own.

    Steps ascend the cross-entropy of all of the attacker's records that are still right, each weighing alike, as in
    Shafahi et al. 2020 (arXiv:1811.11304). What it finds is then added to each record that is evaluated, once.
    """

    kind: Literal["universal"] = "universal"
    seeks_all: ClassVar[bool] = False
    steps: PositiveInt = Field(20, le=100_000, description="gradient steps, each over all of the attacker's records")
    records: PositiveInt = Field(200, le=100_000, description="of the attacker's own that it is crafted on, at most")

    @property
    def access(self) -> Access:
        return Access.WHITE_BOX

    @property
    def effort(self) -> Effort:
        return Effort(answers=1, gradients=self.steps)  # of which it takes about as many records as are evaluated

    def why_not(self, case: Case) -> str | None:
        if case.twin is None:
            return "there is no differentiable module for this candidate"
        if len(case.attacker) == 0:
            return "the attacker has no records of its own to craft it on"
        return None

    def perturb(self, search: Search, case: Case) -> None:
        ball = search.ball
        if not isinstance(ball, Ball):
            raise NotApplicable("one change for all records needs one radius for all of them")
        compute = partial(self._crafted, case, ball.norm, ball.epsilon, derive(search.seed, "universal"))
        form = {"change": Array("float32", (1, *ball.center.shape[1:]))}
        kept = kept_at_cost(f"{self.part}/{ball.epsilon!r}/crafted", search.ledger, compute, form)
        change = torch.from_numpy(np.array(kept["change"])).to(ball.center.device)
        search.query(ball.project(ball.center + change), math.nan)

    def _crafted(self, case: Case, norm: Norm, epsilon: float, seed: int, ledger: Ledger) -> Arrays:
        """`change`, float32 [1, *shape]: of those on the way, the one that leaves fewest of the records right."""
        assert case.twin is not None  # why_not came first
        device = device_of(case.twin, case.attacker.x.device)
        records = case.attacker.take(torch.arange(min(self.records, len(case.attacker)))).to(device)
        bounds, model = case.bounds.to(device), Gradients(case.twin, "ce", ledger)
        nothing = torch.zeros_like(records.x[:1])
        # Changes lie in a ball around nothing, within bounds that are twice as wide: so a radius counts half.
        room = Ball(norm, epsilon / 2, nothing, Bounds(-bounds.scale, bounds.scale, bounds.held))
        change = room.random_start(uniform(seed, np.zeros(1, dtype=np.int64), tuple(nothing.shape[1:])).to(device))
        best, fewest = change, len(records) + 1
        for _ in range(self.steps + 1):
            uphill, right = torch.zeros_like(change), 0
            for some in torch.arange(len(records), device=device).split(at_once(case)):
                part = records.take(some)
                found = model(Ball(norm, epsilon, part.x, bounds).project(part.x + change), part.y)
                slope = found.gradient.nan_to_num(0.0, 0.0, 0.0)
                standing = per_record(found.margin > 0, slope)
                right += int(standing.sum())
                uphill += (standing * slope / l2_norm(slope).clamp_min(SMALLEST)).sum(0, keepdim=True)
            if right <= fewest:  # of equals the later one, which went further
                best, fewest = change, right
            change = room.step(change, uphill, max(2.5 / self.steps, STRIDE) * epsilon / 2)
        return {"change": best.cpu().numpy()}
