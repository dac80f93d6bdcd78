"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083), on the twin or on the native gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ....targets.data.records import Bounds, Records
from ....targets.form import Array
from ....targets.model import device_of, records_at_once
from ....targets.seeds import derive, uniform
from ....targets.steps import Arrays
from ....training.ball import Ball, Norm, per_record
from ...access import Access, Ledger
from ...case import Case
from ...effort import Effort
from ..ascent.gradients import Gradients
from ..ascent.losses import Loss
from ..blocks import COPIES, Counter, blocks, kept_at_cost
from ..engine import PERTURBERS, Perturber, Search

EARLIEST = 4  # steps of a search before any record is called hopeless
CRAFT_STEPS = 20  # of `craft`; of 400 digits on four nets, as many travel as with 40
AGAIN = 0.15  # of it, at least, while another start follows: nearly all that a second start fools came so near before
CREDIBLE = 10.0  # a margin so many times its fall hardly fell; the largest of the nets in `hopeless` is 6


class GradientPerturber(Perturber):
    """A perturber that follows gradients: which ones, of which loss, for how long."""

    loss: Loss = Field("ce", description="what is ascended: cross-entropy, minus the logit margin, or DLR")
    steps: PositiveInt = Field(40, le=100_000, description="gradient steps per restart")
    restarts: PositiveInt = Field(1, le=1000, description="random starts; a fooled record takes no further one")
    gradients: Literal["straight-through", "native"] = Field(
        "straight-through", description="of the differentiable twin, or the candidate's own (zero where it rounds)"
    )

    informs: ClassVar[bool] = False  # the margins it comes to are those of `gradients`, in its own ball

    @property
    def part(self) -> str:
        return self.label or self.kind + ("-native" if self.gradients == "native" else "")

    @property
    def access(self) -> Access:
        return Access.WHITE_BOX

    @property
    def follows(self) -> str | None:
        return self.gradients if self.informs else None

    @property
    def effort(self) -> Effort:
        return Effort(gradients=self.steps * self.restarts)

    def module(self, case: Case) -> nn.Module | None:
        """The module whose gradients are followed."""
        return case.native if self.gradients == "native" else case.twin

    def differentiated(self, case: Case) -> tuple[nn.Module | None, ...]:
        return (self.module(case),)

    def why_not(self, case: Case) -> str | None:
        if self.module(case) is None:
            return f"there is no differentiable module with {self.gradients} gradients for this candidate"
        return None

    def model(self, search: Search, case: Case) -> Gradients:
        module = self.module(case)
        assert module is not None  # why_not came first
        past_clips = self.gradients == "straight-through"
        return Gradients(module, self.loss, search.ledger, goal=search.goal, past_clips=past_clips)


@PERTURBERS.register
class Pgd(GradientPerturber):
    """Projected gradient descent (Madry et al. 2018, arXiv:1706.06083) with random starts."""

    kind: Literal["pgd"] = "pgd"
    informs: ClassVar[bool] = True
    step_size: PositiveFloat | None = Field(
        None, le=1000, description="in [0, 1] units; default: twice epsilon at first, next to nothing at the end"
    )

    def perturb(self, search: Search, case: Case) -> None:
        """A record also leaves when its margin is out of reach (`hopeless`), where it follows what is ascended and the
        steps settle.
        """
        model = self.model(search, case)
        total, judges = self.steps * self.restarts, self.step_size is None and self.loss != "dlr"
        for restart in range(self.restarts):
            if len(search.active) == 0:
                return
            x, found = search.first_ascent(model, restart, restart / self.restarts)
            first = found.margin
            for step in range(1, self.steps + 1):
                if len(x) == 0:
                    return
                size = self.step_size or search.ball.epsilon * settling((step - 0.5) / self.steps)
                x = search.ball.step(x, found.gradient, size)
                if step == self.steps:
                    search.offer(x, model.margins(x, search.y), (restart + 1) / self.restarts)
                    break
                found = search.ascent(model, x)
                stay = search.offer(x, found.margin, (restart * self.steps + step) / total)
                if stay is not None:
                    x, found, first = x[stay], found.take(stay), first[stay]
                if judges and judged(step, self.steps):
                    last = restart + 1 == self.restarts
                    lost = hopeless(first, search.margin[search.active], step / self.steps, last=last)
                    if lost.any():
                        stay = search.release(lost)
                        x, found, first = x[stay], found.take(stay), first[stay]


def settling(progress: float) -> float:
    """The step of a search that is so far, in [0, 1], as a share of the radius: across the ball first, then settling.

    Of 500 digits at an L-inf epsilon of .12, 20 such steps leave 32 and 243 standing (a plain net and an adversarially
    trained one), 40 of a quarter of epsilon 34 and 247.
    """
    return 1 + math.cos(math.pi * progress)


def judged(step: int, steps: int) -> bool:
    """Whether to ask after this step which records are hopeless: not at once, and of many steps not after each."""
    return step >= max(EARLIEST, steps // 10) and step % max(1, steps // 40) == 0


def hopeless(first: Tensor, lowest: Tensor, progress: float, *, last: bool = True) -> Tensor:
    """bool [n]: whether what is left of a search with `settling` steps will not make the margins negative.

    What a margin still falls by is at most a share of what it fell by so far, and that goes down with the steps: the
    more they settle, the less is left to gain. Where it hardly fell, gradients predict nothing, and nothing is judged.

    The share is what `settling` leaves of the steps: of 5,479 searches that succeed on 52 pairs of a net and a radius
    (CNNs with batch norm, plain, adversarially trained, quantised and pruned, on digits and MNIST; nets without;
    tables; planted false robustness; L-inf and L2, one start of 20 steps) 3 are lost, and 68 % of the gradients are
    taken. It was chosen on these. With about a third of that share, which loses next to none on nets without batch
    norm, a CNN with it loses 22 of 74 on MNIST.

    Args:
        first: [n], the margins at the start; lowest: [n], the lowest ones since.
        progress: of the search, in [0, 1].
        last: whether no other start follows, which may end elsewhere.
    """
    fall = first - lowest
    share = settling(progress) if last else max(settling(progress), AGAIN)
    return (lowest > share * fall) & (lowest < CREDIBLE * fall)


def default_step(epsilon: float, steps: int) -> float:
    """One length for all steps of a search: enough to cross the ball, and never short."""
    return epsilon * max(2.5 / steps, 0.25)


def craft(
    module: nn.Module,
    records: Records,
    epsilons: Sequence[float],
    norm: Norm,
    bounds: Bounds,
    *,
    seed: int,
    steps: int = CRAFT_STEPS,
    ledger: Ledger | None = None,
    name: str = "craft",
) -> dict[float, Tensor]:
    """Adversarial inputs crafted on one model to be replayed on others: what `transfer` needs of the parent.

    PGD on the cross-entropy that goes on after success: of all inputs seen, a record keeps the one with the lowest
    margin, because a confident one transfers best. Each block of records at each epsilon is kept (`steps.kept`), of
    large ones each batch: its passes take minutes.

    Args:
        module: on the device it is to run on.
        seed: a record's start follows from it and from the record's position.
        name: tells several such pieces of one larger work apart.

    Returns:
        By epsilon: float32 like `records.x`, on its device, inside the ball.
    """
    spent = ledger if ledger is not None else Ledger()
    counter = Counter(len(records) * len(epsilons))
    batch = records_at_once(records.x[:1], module, copies=COPIES)
    crafted = {}
    for epsilon in epsilons:
        x = torch.empty_like(records.x)
        pieces = [
            (start, min(start + batch, end))
            for first, end in blocks(len(records))
            for start in range(first, end, batch)
        ]
        for first, end in pieces:
            some = Records(records.x[first:end], records.y[first:end])
            seeds = derive(seed, "craft", repr(epsilon))
            compute = partial(_crafted, module, some, norm, epsilon, bounds, seeds, steps, first, counter)
            form = {"x": Array("float32", (end - first, *records.x.shape[1:]))}
            piece = kept_at_cost(f"{name}/{epsilon!r}/{first}-{end}", spent, compute, form)
            x[first:end] = torch.from_numpy(np.array(piece["x"]))
        crafted[epsilon] = x
    return crafted


def _crafted(
    module: nn.Module,
    records: Records,
    norm: Norm,
    epsilon: float,
    bounds: Bounds,
    seed: int,
    steps: int,
    first: int,
    counter: Counter,
    ledger: Ledger,
) -> Arrays:
    """One batch, whose first record stands at `first`."""
    model = Gradients(module, "ce", ledger)
    device = device_of(module, records.x.device)
    x0, y = records.x.to(device), records.y.to(device)
    ball = Ball(norm, epsilon, x0, bounds.to(device))
    places = np.arange(first, first + len(records))
    x = ball.random_start(uniform(seed, places, tuple(x0.shape[1:])).to(device))
    best, lowest = x0.clone(), torch.full((len(records),), torch.inf, device=device)
    for step in range(steps + 1):
        if step < steps:
            gradient, margin, _, _ = model(x, y)
        else:
            margin = model.margins(x, y)
        better = margin < lowest
        lowest = torch.where(better, margin, lowest)
        best = torch.where(per_record(better, x), x, best)
        if step < steps:
            x = ball.step(x, gradient, epsilon * settling((step + 0.5) / steps))
        counter.now(len(records) * step / steps)
    counter.add(len(records))
    return {"x": best.cpu().numpy()}
