"""Which epsilon tells models apart: the one at which the dense model keeps about half of its accuracy.

At a radius where it keeps everything or nothing, every candidate looks like it. What that radius is depends on the data
and the net far more than on the domain's habits: 8/255 leaves nothing of an undefended CIFAR net.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...targets.data.records import Records
from ...targets.form import Array
from ...targets.model import device_of
from ...targets.seeds import derive
from ...targets.steps import Arrays
from ...training.ball import Ball, Norm
from ..access import Ledger
from ..case import Case
from ..rounds import MOST_RECORDS
from .ball import whole_range
from .black_box.square import Square
from .blocks import Counter, at_once, followable, kept_at_cost, seek
from .engine import Perturber
from .gradient.pgd import Pgd

LADDERS: dict[Norm, tuple[float, ...]] = {
    "linf": (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5),
    "l2": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
}
Reach = Annotated[float, Field(gt=0, le=1000)]  # of an attack, in units of [0, 1] pixels
Share = Annotated[float, Field(ge=0, le=1)]
CURVE = (0.3, 0.5, 1.0, 1.5)  # of the radius: where the curve is drawn
LEAST, MOST = 1 / 3, 2 / 3  # of the clean accuracy, that the dense model should keep
BISECTIONS = 8
RECORDS, BLIND_RECORDS = 200, 100  # of the attacker's own, probed with and without gradients


def curve(epsilon: float, largest: float = float("inf")) -> tuple[float, ...]:
    """The radii a curve around `epsilon` is drawn at, none beyond `largest`."""
    radii = (epsilon if share == 1 else float(f"{share * epsilon:.6g}") for share in CURVE)
    return tuple(radius for radius in radii if radius <= max(largest, epsilon))


@dataclass(frozen=True)
class Radius:
    """The chosen epsilon, and the probe it rests on.

    Args:
        epsilons: a curve around it.
        kept: robust / clean accuracy of the probed model there, in [0, 1].
        records: how many were probed.
        how: a rung of the ladder, found between two rungs, or only the nearest to one half there is.
        probe: robust accuracy by epsilon, as far as it was looked at; at 0 the clean one.
    """

    epsilon: Reach
    epsilons: tuple[Reach, ...]
    kept: Share
    records: Annotated[int, Field(gt=0, le=MOST_RECORDS)]
    how: Literal["ladder", "bisected", "nearest"]
    probe: dict[Annotated[float, Field(ge=0, le=1000)], Share]


def choose(case: Case, norm: Norm, *, seed: int) -> Radius:
    """The largest rung at which the deployed model keeps a third to two thirds of its clean accuracy.

    Where no rung does, a radius between two is looked for by bisection; where there is none either (a model that keeps
    all or nothing), the nearest to one half is taken, and `how` says so. A quick probe on the attacker's own records
    decides: 20 steps of PGD through the twin, or Square where there is none. The full attack finds a little more.
    """
    probe = _Probe.of(case, norm, seed)
    shape = tuple(case.evaluation.x.shape[1:])
    limit = whole_range(norm, shape)
    below, above = 0.0, None
    fit: list[float] = []
    for rung in (*(rung for rung in LADDERS[norm] if rung < limit), limit):
        kept = probe.kept(rung, below)
        if kept > MOST:
            below = rung
        elif kept >= LEAST:
            fit.append(rung)
        else:
            above = rung
            break
    if fit:
        return probe.radius(fit[-1], "ladder", limit)
    if above is not None:
        for _ in range(BISECTIONS):
            middle = float(f"{((below or above / 1e4) * above) ** 0.5:.2g}")
            if not below < middle < above:
                break
            kept = probe.kept(middle, below)
            if LEAST <= kept <= MOST:
                return probe.radius(middle, "bisected", limit)
            below, above = (middle, above) if kept > MOST else (below, middle)
    nearest = min(probe.fooled.keys() - {0.0}, key=lambda epsilon: (abs(probe.share(epsilon) - 0.5), epsilon))
    return probe.radius(nearest, "nearest", limit)


@dataclass
class _Probe:
    """A quick attack at ever new radii; a record fooled at one radius counts as fooled at every larger one."""

    case: Case
    norm: Norm
    seed: int
    records: Records
    part: Perturber
    batch: int
    fooled: dict[float, Tensor] = field(default_factory=dict)  # by radius, bool [n]; at 0 the clean errors

    @classmethod
    def of(cls, case: Case, norm: Norm, seed: int) -> _Probe:
        module = case.twin if case.twin is not None else case.native
        count = min(BLIND_RECORDS if module is None else RECORDS, len(case.attacker))
        part: Perturber = Square(queries=100)
        if module is not None:
            part = Pgd(steps=20, loss="margin", gradients="native" if case.twin is None else "straight-through")
        device = case.attacker.x.device if module is None else device_of(module, case.attacker.x.device)
        records = Records(case.attacker.x[:count], case.attacker.y[:count]).to(device)
        wrong = case.deployed.logits(records.x).argmax(1) != records.y
        case = followable(case, [part])
        return cls(case, norm, seed, records, part, at_once(case), {0.0: wrong.cpu()})

    def kept(self, epsilon: float, below: float) -> float:
        """Attacks at `epsilon` what is left at the smaller radius `below`; robust / clean accuracy."""
        among = ~self.fooled[below]

        def probed(spent: Ledger) -> Arrays:
            found = seek(
                self.part,
                self.case,
                self.records,
                np.arange(len(self.records)),
                Ball(self.norm, epsilon, self.records.x, self.case.bounds.to(self.records.x.device)),
                among=among,
                seed=derive(self.seed, "radius", repr(epsilon)),
                ledger=spent,
                batch=self.batch,
                counter=Counter(len(self.records)),
            )
            return {"fooled": found.fooled.numpy()}

        form = {"fooled": Array("bool", (len(self.records),))}
        found = kept_at_cost(f"radius/{epsilon!r}", Ledger(), probed, form)
        self.fooled[epsilon] = ~among | torch.from_numpy(np.array(found["fooled"]))
        return self.share(epsilon)

    def share(self, epsilon: float) -> float:
        clean = int((~self.fooled[0.0]).sum())
        return int((~self.fooled[epsilon]).sum()) / clean if clean else 0.0

    def radius(self, epsilon: float, how: Literal["ladder", "bisected", "nearest"], limit: float) -> Radius:
        shares = {radius: 1 - float(wrong.double().mean()) for radius, wrong in sorted(self.fooled.items())}
        return Radius(epsilon, curve(epsilon, limit), self.share(epsilon), len(self.records), how, shares)
