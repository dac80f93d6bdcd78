"""The records of an audit and who is who among them.

Members were trained on; non-members were not. The non-members are split once, by the audit's seed, into the records
an attack is *evaluated* on and the *attacker's own* (extraction queries, thresholds): the two never meet.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..seeds import generator
from .checks import check_data, check_enough
from .copies.repeats import find_repeats
from .further.forgetting import check_forgotten
from .further.public import check_public, unlabelled
from .further.task import NewTask, check_shape
from .one_hot import undeclared_blocks
from .records import Bounds, Persons, Records, check_persons
from .structure import PLAIN, Structure, check_structure

ATTACKER_SHARE = 1 / 3  # of the non-members; the rest is evaluated on


@dataclass(frozen=True, eq=False)
class Data:
    """The records of one audit, checked. A record's id is its index in `members` or in `non_members`.

    Args:
        name: what the report calls the data.
        members: records the model was trained on; None when only a test set is at hand (no membership audit then).
        non_members: records the model has never seen.
        bounds: what an input may be; epsilon is in units of [0, 1] and scaled by it.
        class_names: one per class, shown in the report as text; none where values are predicted (regression).
        groups: a group name per non-member, for "who is hit"; optional.
        persons: whose each record is; membership is then also asked of persons. Optional.
        seed: splits the non-members.
        notes: sentences a reader of the report must know about the data; the loaders' and the checks' own.
        bounds_doubt: why the bounds, which nobody gave, may be others than the true ones; "": they are given or sure.
        structure: what the features are where they are no plain numbers; `bounds` holds an attacker to it.
        forgotten: records that the model was trained on once and was to forget: none of `members`, and nothing is
            trained on them; None: there are none.
        public: float32 [n, *shape], inputs of nobody whose membership is asked, for defenses that train on them; those
            that are members or non-members too are left out. None: there are none.
        transfer: another task for the models, which no other figure is of; None: there is none.

    Test records that are repeated beyond what is natural are left out but for the first of each (`repeats`).

    Attributes:
        doubts: why figures of these records may be too optimistic: the name of a trust flag and a sentence, each.

    Raises:
        InputError: empty or single-class splits, labels out of range, NaN, values outside the bounds, wrong shapes,
            members among the non-members, records that are not what `structure` says; each with its own sentence.
    """

    name: str
    members: Records | None
    non_members: Records
    bounds: Bounds
    class_names: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    persons: Persons | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()
    bounds_doubt: str = ""
    structure: Structure = PLAIN
    forgotten: Records | None = None
    public: Tensor | None = None
    transfer: NewTask | None = None
    doubts: tuple[tuple[str, str], ...] = field(default=(), init=False)
    _split: tuple[Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = check_data(
            self.members,
            self.non_members,
            self.bounds,
            self.class_names,
            self.groups,
            forgotten=self.forgotten,
            public=self.public,
        )
        splits = {"test records": self.non_members.x}
        splits |= {} if self.members is None else {"training records": self.members.x}
        splits |= {} if self.forgotten is None else {"records to forget": self.forgotten.x}
        splits |= {} if self.public is None else {"public records": self.public}
        if self.persons is not None:
            check_persons(self.persons, None if self.members is None else len(self.members), len(self.non_members))
        found += check_structure(self.structure, splits)
        found += self._leave_out_copies()
        if self.forgotten is not None:
            forgotten, told = check_forgotten(self.forgotten, self.members, self.non_members)
            object.__setattr__(self, "forgotten", forgotten)
            found += told
        if self.public is not None:
            others = {"training records": self.members, "test records": self.non_members}
            others["records to forget"] = self.forgotten
            public, told = check_public(self.public, {split: own for split, own in others.items() if own is not None})
            object.__setattr__(self, "public", public)
            found += told
        object.__setattr__(self, "notes", (*self.notes, *dict.fromkeys([*found, *(told for _, told in self.doubts)])))
        if self.transfer is not None:
            check_shape(self.transfer, self.shape)
        held, whole = self.structure.held_in(self.shape), self.structure.whole_in(self.shape)
        object.__setattr__(self, "bounds", replace(self.bounds, held=held, whole=whole))
        object.__setattr__(self, "_split", split(len(self.non_members), self.seed))

    def beside(self, transfer: NewTask) -> Data:
        """The same, checked already, with another task.

        Raises:
            InputError: its records are of another shape.
        """
        check_shape(transfer, self.shape)
        found = object.__new__(Data)
        found.__dict__.update({name: value for name, value in self.__dict__.items() if name != "digest"})
        object.__setattr__(found, "transfer", transfer)
        return found

    def _leave_out_copies(self) -> list[str]:
        found = find_repeats(self.members, self.non_members, self.bounds, tokens=self.structure.tokens)
        object.__setattr__(self, "doubts", found.doubts)
        if found.keep is None:
            return found.notes
        given = len(self.non_members)
        object.__setattr__(self, "non_members", self.non_members.take(found.keep))
        check_enough(self.non_members, "test records", given)  # of every class and value the first one is still there
        if self.groups is not None:
            object.__setattr__(self, "groups", tuple(self.groups[at] for at in found.keep.tolist()))
        if self.persons is not None:
            object.__setattr__(self, "persons", self.persons.take(found.keep))
            check_persons(self.persons, given, len(self.non_members))
        return found.notes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one record."""
        return tuple(self.non_members.x.shape[1:])

    @property
    def regression(self) -> bool:
        """Whether the model predicts values instead of a class."""
        return self.non_members.y.is_floating_point()

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def outputs(self) -> int:
        """How many numbers the model answers for a record."""
        return int(self.non_members.y.shape[1]) if self.regression else self.classes

    @property
    def variance(self) -> float:
        """Of the non-members' values, per output on average: what a squared error is measured in."""
        return float(self.non_members.y.double().var(0, correction=0).mean())

    @property
    def evaluation_ids(self) -> Tensor:
        """int64: the non-members that attacks and accuracy are evaluated on, in random order: any first n of them are
        a random sample, however the file was sorted."""
        return self._split[0]

    @cached_property
    def evaluation(self) -> Records:
        return self.non_members.take(self._split[0])

    @cached_property
    def attacker(self) -> Records:
        """The non-members an attacker owns."""
        return self.non_members.take(self._split[1])

    @cached_property
    def undeclared_blocks(self) -> tuple[tuple[int, int], ...]:
        """First and last column of the one-hot blocks that a table shows and that `structure` does not name."""
        return undeclared_blocks(self.non_members.x, self.structure.held_in(self.shape))

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything that decides a result: values, labels, order, bounds, names, structure, split."""
        digest = hashlib.sha256()
        public = None if self.public is None else unlabelled(self.public)
        for records in (self.members, self.non_members, self.forgotten, public):
            for tensor in (records.x, records.y) if records is not None else ():
                digest.update(str((tuple(tensor.shape), str(tensor.dtype))).encode())
                digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        digest.update(
            np.ascontiguousarray(torch.cat([self.bounds.low.flatten(), self.bounds.high.flatten()])).tobytes()
        )
        digest.update(repr((self.class_names, self.groups, self._split[1].tolist())).encode())
        for numbers in () if self.persons is None else (self.persons.members, self.persons.non_members):
            digest.update(numbers.numpy().tobytes())
        digest.update(repr(self.structure).encode() if self.structure != PLAIN else b"")
        if self.transfer is not None:
            digest.update(repr(self.transfer.class_names).encode())
            for tensor in (
                one for part in (self.transfer.members, self.transfer.evaluation) for one in (part.x, part.y)
            ):
                digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return digest.hexdigest()


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of n non-members those that are evaluated, and the attacker's own: int64, in random order."""
    order = torch.randperm(n, generator=generator(seed, "data", "split"))
    attackers = max(1, int(n * ATTACKER_SHARE))
    return order[attackers:], order[:attackers]
