"""Models trained on samples in which a property has one share or another, before any is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...targets.data.data import Data
from ...targets.data.records import Records
from ...targets.errors import NotApplicable
from ...targets.seeds import derive, generator
from ..membership.population import PopulationPlan

ASKED = 200  # of the attacker's records that models are asked about, at most
PORTION = 0.8  # of the records with the property, and of those without, that a sample takes at most
FEWEST = 20  # records of a sample
UNITS = 1e-9  # of a share times a number of records: rounding


@dataclass(frozen=True)
class Property:
    """Which records have it: those of a class, or those with more than a threshold in a column.

    Args:
        words: "records with more than 3 in column 2".
        column: a feature's position; None: `label` counts.
    """

    words: str
    column: int | None
    threshold: float
    label: int | None

    def of(self, records: Records) -> Tensor:
        """bool [n], on the CPU."""
        if self.column is None:
            return records.y.cpu() == (-1 if self.label is None else self.label)
        return records.x[:, self.column].cpu() > self.threshold


@dataclass(frozen=True)
class Question:
    """What is asked, as a plan has it: of which records, at which shares, and how many models are trained at each.

    Args:
        column, label: positions of a feature, or of a class; one of them is None.
        above: None: the middle of a column of two values, else the median of the attacker's records.
        shares: ascending; None: half of what is usual, and one and a half, of the rarer sort of records.
        repetitions: models at each share, an even number: the first half are the attacker's own.
    """

    column: int | None
    label: int | None
    above: float | None
    shares: tuple[float, ...] | None
    repetitions: int

    @property
    def levels(self) -> int:
        return 2 if self.shares is None else len(self.shares)

    @property
    def count(self) -> int:
        return self.repetitions * self.levels

    @property
    def held_out(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """bool [count]: what stands for the audited model, trained on records that the attacker does not have."""
        return np.arange(self.count) >= self.count // 2

    def settled(self, data: Data) -> Shares:
        """With what is left open, from the attacker's records.

        Raises:
            NotApplicable: all of them have the property, or none.
        """
        threshold, words = 0.0, ""
        if self.column is not None:
            values = data.attacker.x[:, self.column]
            two = (float(values.min()) + float(values.max())) / 2
            usual = two if len(values.unique()) <= 2 else float(values.median())
            threshold = usual if self.above is None else self.above
            name = data.structure.names[self.column] if data.structure.names else str(self.column)
            words = f"records with more than {threshold:g} in column {name}"
        elif self.label is not None:
            words = f"records of class {data.class_names[self.label]}"
        found = Property(words, self.column, threshold, self.label)
        share = float(found.of(data.attacker).double().mean())
        if self.shares is not None:
            return Shares(found, self.shares, self)
        if not 0 < share < 1:
            raise NotApplicable(f"not applicable: of the attacker's records {'all' if share else 'none'} are {words}")
        reach = min(share, 1 - share) / 2
        return Shares(found, (round(share - reach, 3), round(share + reach, 3)), self)


@dataclass(frozen=True)
class Shares:
    """The trainings: for each repetition one at each share."""

    having: Property
    shares: tuple[float, ...]
    question: Question

    @property
    def count(self) -> int:
        return self.question.count

    @property
    def held_out(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return self.question.held_out

    @property
    def share(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Of each model, [count]."""
        return np.tile(np.array(self.shares), self.question.repetitions)

    def plan(self, data: Data, seed: int) -> Sampled:
        """Who is trained on what: the attacker's models on records that the audited model never saw, the others on its
        training records, of either sort `PORTION` at most, so that no two samples are alike.

        Raises:
            NotApplicable: too few records have the property, or lack it.
        """
        return _plan(self, data, seed)


def asked_of(data: Data) -> int:
    """How many of the attacker's records, the first ones, models are asked about; none is trained on them."""
    return min(ASKED, (len(data.attacker) + 1) // 2)


@dataclass(frozen=True, eq=False)
class Sampled(PopulationPlan):
    """Samples that are repeated to the length of the audited model's training: as many steps are taken as there.

    Args:
        length: records of a training.
    """

    length: int = 0

    def subset(self, shadow: int) -> Tensor:
        own = torch.from_numpy(np.flatnonzero(self.inside[shadow]))
        own = own[torch.randperm(len(own), generator=generator(self.seeds[shadow], "repeated sample"))]
        return own.repeat(-(-self.length // len(own)))[: self.length]


@lru_cache(maxsize=1)  # it copies all records that they are trained on
def _plan(shares: Shares, data: Data, seed: int) -> Sampled:
    assert data.members is not None, "who calls this has looked"
    own = data.attacker.take(torch.arange(asked_of(data), len(data.attacker)))
    outside = Records(torch.cat([own.x, data.evaluation.x]), torch.cat([own.y, data.evaluation.y]))
    pools, has = (outside, data.members), [shares.having.of(one) for one in (outside, data.members)]
    size = sample_size(shares, [int(one.sum()) for one in has], [len(one) for one in pools])
    if size < FEWEST:
        raise NotApplicable(
            f"not applicable: too few {shares.having.words}, or too few others, for samples of {FEWEST} in which "
            f"they are {' or '.join(f'{100 * one:g} %' for one in shares.shares)}"
        )
    inside = np.zeros((shares.count, sum(len(one) for one in pools)), dtype=bool)
    for model, (share, held_out) in enumerate(zip(shares.share, shares.held_out, strict=True)):
        of, first = has[int(held_out)], len(outside) if held_out else 0
        with_it = round(share * size)
        for side, count in ((True, with_it), (False, size - with_it)):
            rows = (of == side).nonzero().flatten()
            order = torch.randperm(len(rows), generator=generator(seed, "property sample", model, int(side)))
            inside[model, first + rows[order[:count]].numpy()] = True
    return Sampled(
        length=len(data.members),
        records=Records(*(torch.cat([getattr(one, part) for one in pools]) for part in ("x", "y"))),
        attacked=inside.shape[1],
        is_member=np.arange(inside.shape[1]) >= len(outside),
        ids=np.arange(inside.shape[1]),
        inside=inside,
        seeds=tuple(derive(seed, "property model", model) for model in range(shares.count)),
    )


def sample_size(shares: Shares, having: list[int], all_of: list[int]) -> int:
    """Records that every model is trained on, of pools that have so many with the property, and so many in all."""
    most = [float(all_of[-1])]
    for with_it, total in zip(having, all_of, strict=True):
        most += [PORTION * with_it / one for one in shares.shares if one > 0]
        most += [PORTION * (total - with_it) / (1 - one) for one in shares.shares if one < 1]
    return int(min(most) + UNITS)
