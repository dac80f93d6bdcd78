"""How near rebuilt inputs are to training records, and to records of their class that the model never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.seeds import generator
from ..measurement import Bools, Floats
from .space import Space

LEAST = 1e-6  # of a distance: rebuilt exactly
KNOWN = 4000  # of the attacker's records, at most
Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Judged:
    """Members and then other records of the classes that inputs are rebuilt for, n in all.

    Args:
        classes: int64 [c]; ids: int64 [n], in `Data.members` and `Data.non_members`.
        label: int64 [n]; is_member: bool [n].
        equal: bool [n], of each class as many members as others, drawn at random: which of them is nearest says
            nothing but by what the model knows of the members.
    """

    classes: Ids
    ids: Ids
    label: Ids
    is_member: Bools
    equal: Bools

    def records(self, data: Data) -> Records:
        assert data.members is not None, "who calls this has looked"
        inside, others = (torch.from_numpy(self.ids[side]) for side in (self.is_member, ~self.is_member))
        own, rest = data.members.take(inside), data.non_members.take(others)
        return Records(torch.cat([own.x, rest.x]), torch.cat([own.y, rest.y]))


def judged(data: Data, most: int, seed: int) -> Judged:
    """Of at most so many classes, drawn among those that have members, other records and records of the attacker's."""
    assert data.members is not None, "who calls this has looked"
    labels = (data.members.y, data.evaluation.y, data.attacker.y[:KNOWN])
    known = [one for one in range(data.classes) if all(bool((y == one).any()) for y in labels)]
    order = torch.randperm(len(known), generator=generator(seed, "inversion", "classes"))[:most].sort().values
    classes = torch.tensor(known, dtype=torch.int64)[order]
    inside = torch.isin(data.members.y.cpu(), classes).nonzero().flatten()
    others = data.evaluation_ids[torch.isin(data.evaluation.y.cpu(), classes)]
    label = torch.cat([data.members.y.cpu()[inside], data.non_members.y.cpu()[others]]).numpy()
    is_member, equal = np.arange(len(label)) < len(inside), np.zeros(len(label), dtype=bool)
    for one in classes.tolist():
        sides = [np.flatnonzero((label == one) & side) for side in (is_member, ~is_member)]
        count = min(len(side) for side in sides)
        for name, side in zip(("members", "others"), sides, strict=True):
            drawn = torch.randperm(len(side), generator=generator(seed, "inversion", name, one))[:count]
            equal[side[drawn.numpy()]] = True
    return Judged(classes.numpy(), torch.cat([inside, others]).numpy(), label, is_member, equal)


def nearness(rebuilt: Tensor, space: Space, y: Tensor, x: Tensor, about: Judged) -> Floats:
    """How near each record is to what was rebuilt for its class, float64 [n]; higher is nearer.

    The distance is 1 - cosine of what is left when the mean of the attacker's records is taken off, which the contrast
    of a rebuilt input does not change; of a table each column over its spread. It is told as the logarithm of the
    distance of the attacker's own records of the class (their median) over it, so that classes are on one scale.

    Args:
        rebuilt: [c, *shape]; x: [n, *shape], the records; y: labels of `space.known`.
    """
    known = space.units(space.known).flatten(1).double()
    centre, spread = known.mean(0), torch.ones_like(known[0])
    if len(space.shape) == 1:
        spread = known.std(0, correction=0).clamp_min(1e-3)

    def direction(some: Tensor) -> Tensor:
        apart = (space.units(some.to(known.device)).flatten(1).double() - centre) / spread
        way: Tensor = apart / apart.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return way

    found = np.zeros(len(about.label))
    for at, one in enumerate(about.classes.tolist()):
        of = torch.from_numpy(about.label == one)
        way = direction(rebuilt[at : at + 1])[0]
        own, usual = (1 - direction(some) @ way for some in (x[of.to(x.device)], space.known[y == one]))
        found[of.numpy()] = (usual.median().clamp_min(LEAST) / own.clamp_min(LEAST)).log().cpu().numpy()
    return found


def member_is_nearest(near: Floats, about: Judged) -> Bools:
    """bool [c]: whether of as many members as others the nearest to what was rebuilt is a member."""
    chosen = [np.flatnonzero(about.equal & (about.label == one)) for one in about.classes]
    return np.array([bool(about.is_member[rows[near[rows].argmax()]]) for rows in chosen])
