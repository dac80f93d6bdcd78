"""Which records are attacked, and which of them each shadow model was trained on.

The audited model was trained on all members. Its shadows are trained like it on as many records: a random half of the
attacked records (members and as many non-members) and every remaining member. So the attacker who holds the shadows
knows the remaining members and the training procedure; the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.errors import NotApplicable
from ...targets.seeds import derive, generator
from ...training.architecture import Architecture
from ...training.loop import TrainingJob
from ...training.trainer import Trainer
from .case import MembershipCase, ShadowSignals
from .persons import masks_by_person, pairs_of

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ids = np.ndarray[Any, np.dtype[np.int64]]


def masks(attacked: int, shadows: int, seed: int) -> Bools:
    """Who is inside which shadow: bool [shadows, attacked]; shadows 2i and 2i + 1 complement each other.

    So each record is in exactly half of an even number of shadows (within one of half when `shadows` is odd), and each
    shadow has exactly half of the records (within one when `attacked` is odd). Each pair is drawn by its own seed: the
    masks of 16 shadows are the first 16 of the masks of 64.
    """
    inside = np.zeros((shadows + shadows % 2, attacked), dtype=bool)
    for pair in range(0, shadows, 2):
        order = torch.randperm(attacked, generator=generator(seed, "shadow masks", pair // 2)).numpy()
        inside[pair, order[: attacked // 2]] = True
        inside[pair + 1] = ~inside[pair]
    return inside[:shadows]


@dataclass(frozen=True, eq=False)
class PopulationPlan:
    """The population of shadow models of one training procedure, before any is trained.

    Args:
        records: all that shadows are trained on: attacked members, as many attacked non-members, remaining members.
        attacked: how many of `records`, from the first, are attacked; an even number n.
        is_member: bool [n], whether the audited model was trained on the record; the first half.
        ids: int64 [n], indices into `Data.members` or `Data.non_members`.
        inside: bool [k, n], by `masks`.
        seeds: one per shadow, for its initial weights and order of records.
        person: int64 [n], whose each attacked record is; None: not known. All of a person's are inside, or none.
    """

    records: Records
    attacked: int
    is_member: Bools
    ids: Ids
    inside: Bools
    seeds: tuple[int, ...]
    person: Ids | None = None

    @property
    def targets(self) -> Records:
        """The attacked records."""
        return self.records.take(torch.arange(self.attacked))

    def subset(self, shadow: int) -> Tensor:
        """int64 indices into `records`: what this shadow is trained on; all shadows' subsets have one length."""
        own = torch.from_numpy(np.flatnonzero(self.inside[shadow]))
        return torch.cat([own, torch.arange(self.attacked, len(self.records))])

    def fit(
        self, trainer: Trainer, architecture: Architecture, *, first: int, last: int, device: torch.device
    ) -> list[nn.Module]:
        """Trains shadows [first, last). A shadow follows from its own seed and subset.

        A stack rounds its sums in another order than a single model does, so chunks that are to agree bit by bit must
        start at multiples of `training.stacked.GROUP`.
        """
        subsets = [self.subset(shadow) for shadow in range(first, last)]
        return trainer.fit(TrainingJob(architecture, self.records, subsets, self.seeds[first:last], device))

    def case(
        self,
        own: ShadowSignals | None,
        dense: ShadowSignals | None = None,
        blind: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    ) -> MembershipCase:
        """What the membership attack needs of this population."""
        return MembershipCase(self.targets, self.is_member, self.ids, own, dense, blind)


def plan_population(data: Data, shadows: int, *, seed: int) -> PopulationPlan:
    """The plan for `shadows` models; a plan for fewer shadows is the beginning of a plan for more.

    All evaluation non-members and equally many members (or the other way round, if members are fewer) are attacked;
    where it is known whose the records are, all of a person's are attacked together (`persons.pairs_of`).

    Raises:
        NotApplicable: the data has no training records.
    """
    if data.members is None:
        raise NotApplicable("no training records: membership can only be audited against the records of the training")
    half, person = min(len(data.members), len(data.evaluation_ids)), None

    def draw(count: int, label: str) -> Tensor:
        return torch.randperm(count, generator=generator(seed, "attacked", label))[:half].sort().values

    if data.persons is None:
        members = draw(len(data.members), "members")
        non_members = data.evaluation_ids[draw(len(data.evaluation_ids), "non-members")]
        rest = torch.ones(len(data.members), dtype=torch.bool)
        rest[members] = False
        inside = masks(2 * half, shadows, seed)
    else:
        pairs = pairs_of(data, seed)
        members, non_members, rest = (torch.from_numpy(one) for one in (pairs.members, pairs.non_members, pairs.rest))
        half, person = len(members), pairs.person
        inside = masks_by_person(person, shadows, seed)
    parts: Sequence[Records] = (
        data.members.take(members),
        data.non_members.take(non_members),
        data.members.take(rest),
    )
    return PopulationPlan(
        records=Records(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])),
        attacked=2 * half,
        is_member=np.arange(2 * half) < half,
        ids=torch.cat([members, non_members]).numpy(),
        inside=inside,
        seeds=tuple(derive(seed, "shadow", shadow) for shadow in range(shadows)),
        person=person,
    )
