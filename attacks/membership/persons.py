"""Whole persons in place of single records: who is attacked, and whose records each shadow model is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...targets.data.data import Data
from ...targets.seeds import generator

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Persons of either sort, in pairs with equally many attacked records.

    Args:
        members, non_members: int64 [half], the attacked records, indices into `Data.members` and `Data.non_members`,
            pair by pair.
        pair: int64 [half], which pair each belongs to, from 0.
        rest: int64, the members that every shadow is trained on: all records of the persons who are not attacked. A
            record of an attacked person that the other of the pair has no counterpart for is in no shadow.
    """

    members: Ids
    non_members: Ids
    pair: Ids
    rest: Ids

    @property
    def person(self) -> Ids:
        """int64 [2 * half], whose each attacked record is, members first: pair p is persons p and p + pairs."""
        return np.concatenate([self.pair, self.pair + int(self.pair.max()) + 1])


def pairs_of(data: Data, seed: int) -> Pairs:
    """Every person of the rarer sort beside one of the other with as many records, or about as many.

    A person with records on both sides is among the members; with unequal numbers the number of records alone would
    tell the sorts apart, so the larger of a pair is attacked with as many of its records as the smaller has.
    """
    assert data.persons is not None, "asked only where they are known"
    trained = data.persons.members.numpy()
    evaluated = np.sort(data.evaluation_ids.numpy())
    others = data.persons.non_members.numpy()[evaluated]
    new = ~np.isin(others, trained)
    sides = [
        _records_by_person(trained, np.arange(len(trained)), seed, "members"),
        _records_by_person(others[new], evaluated[new], seed, "non-members"),
    ]
    swapped = len(sides[0]) > len(sides[1])
    fewer, more = sides[::-1] if swapped else sides
    members: list[Ids] = []
    non_members: list[Ids] = []
    by_count: dict[int, list[Ids]] = {}
    for records in more:
        by_count.setdefault(len(records), []).append(records)
    for records in fewer:
        nearest = min(by_count, key=lambda count: (abs(count - len(records)), count))
        other = by_count[nearest].pop()
        if not by_count[nearest]:
            del by_count[nearest]
        one, two = (other, records) if swapped else (records, other)
        least = min(len(one), len(two))
        members.append(one[:least])
        non_members.append(two[:least])
    pair = np.repeat(np.arange(len(members)), [len(one) for one in members])
    attacked = np.concatenate(members)
    rest = np.flatnonzero(~np.isin(trained, trained[attacked]))
    return Pairs(attacked, np.concatenate(non_members), pair, rest)


def _records_by_person(person: Ids, ids: Ids, seed: int, label: str) -> list[Ids]:
    """The records of each person in random order; the persons too, those with most records first."""
    order = torch.randperm(len(person), generator=generator(seed, "persons", label)).numpy()
    _, first, number = np.unique(person[order], return_index=True, return_inverse=True)
    found = [ids[order[number == one]] for one in np.argsort(first)]
    return sorted(found, key=len, reverse=True)


def masks_by_person(person: Ids, shadows: int, seed: int) -> Bools:
    """As `population.masks`, bool [shadows, n], with all attacked records of a person inside or none.

    Of the persons with equally many records each shadow has half, so that all are trained on equally many records.

    Args:
        person: int64 [n], whose each record is, as `Pairs.person` has it: of each number of records an even number of
            persons has so many.
    """
    count = np.bincount(person)
    inside = np.zeros((shadows + shadows % 2, len(count)), dtype=bool)
    for pair in range(0, shadows, 2):
        for size in np.unique(count):
            alike = np.flatnonzero(count == size)
            order = torch.randperm(len(alike), generator=generator(seed, "shadow persons", pair // 2, int(size)))
            inside[pair, alike[order.numpy()[: len(alike) // 2]]] = True
        inside[pair + 1] = ~inside[pair]
    return inside[:shadows][:, person]
