"""Inputs with what a model should answer, and the values an input may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

LEAST_PERSONS = 10  # on each side: fewer tell nothing of persons


@dataclass(frozen=True, eq=False)
class Bounds:
    """The values an input may take: `low` and `high`, float32, broadcastable to one record (scalar, [c, 1, 1], [f]).

    Args:
        held: bool [*shape], values of a record that an attacker leaves as they are; None: it may change all.
        whole: bool [*shape], values that are whole numbers; None: fractions are allowed everywhere.
    """

    low: Tensor
    high: Tensor
    held: Tensor | None = None
    whole: Tensor | None = None

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.low).all() and torch.isfinite(self.high).all() and (self.low < self.high).all()):
            raise InputError(
                "The bounds of the data must be finite with low < high in every channel. Give the smallest and largest "
                "value an input can take, for example [0, 1] or [0, 255]."
            )

    @classmethod
    def of(cls, low: float, high: float) -> Bounds:
        """The same bounds for every channel."""
        return cls(torch.tensor(float(low)), torch.tensor(float(high)))

    @cached_property
    def scale(self) -> Tensor:
        """`high - low`: an epsilon in units of [0, 1] pixels times this is the epsilon in units of the data."""
        return self.high - self.low

    def to(self, device: str | torch.device) -> Bounds:
        held, whole = (None if mask is None else mask.to(device) for mask in (self.held, self.whole))
        return Bounds(self.low.to(device), self.high.to(device), held, whole)

    def clamp(self, x: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(x, self.high), self.low)


@dataclass(frozen=True, eq=False)
class Records:
    """Inputs with what a model should answer: `x` float32 [n, *shape], `y` int64 [n] classes or float32 [n, outputs]
    values (regression).
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Records:
        """The records at `index` (int64 or bool [n]), in that order."""
        return Records(self.x[index], self.y[index])

    def to(self, device: str | torch.device) -> Records:
        return Records(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Persons:
    """Who the records are of.

    Args:
        members: int64 [members], the number of the person each record is of; non_members: the same. A number means the
            same person on both sides.
    """

    members: Tensor
    non_members: Tensor

    @classmethod
    def of(cls, train: Sequence[str], test: Sequence[str]) -> Persons:
        """From what the file calls them, one per record; nothing of that is kept but who is who."""
        numbers = np.unique(np.array([*train, *test]), return_inverse=True)[1]
        split = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
        return cls(split[: len(train)], split[len(train) :])

    def take(self, non_members: Tensor) -> Persons:
        """With these of the non-members' records, int64."""
        return Persons(self.members, self.non_members[non_members])


def check_persons(persons: Persons, members: int | None, non_members: int) -> None:
    """Whether there is one person for each record, and enough of them on either side.

    Raises:
        InputError: not so; the message names the arrays of a file.
    """
    if members is None:
        raise InputError(
            "persons_train and persons_test name who the records are of, and there are no training records."
        )
    for name, numbers, count in (("train", persons.members, members), ("test", persons.non_members, non_members)):
        if len(numbers) != count:
            raise InputError(
                f"There are {len(numbers)} entries in persons_{name} for {count} records in x_{name}. Give the person "
                "of each record, in the order of the records."
            )
    trained = persons.members.unique()
    new = persons.non_members[~torch.isin(persons.non_members, trained)].unique()
    if min(len(trained), len(new)) < LEAST_PERSONS:
        raise InputError(
            f"persons_train names {len(trained)} persons, and persons_test {len(new)} who are none of them. At least "
            f"{LEAST_PERSONS} of each are needed to tell the ones from the others; without the two "
            "each record is judged by itself."
        )
