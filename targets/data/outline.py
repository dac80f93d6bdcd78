"""All of an audit's data but the inputs: enough to say again what was measured, and no input can be read from it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from .data import Data, split
from .further.task import NewTask
from .records import Bounds, Persons, Records
from .structure import Structure

PERSONS = ("persons_members", "persons_non_members")
TRANSFER = ("transfer_members", "transfer_evaluation")
MOST_VALUES = 2**48  # of all inputs together; none of them is held


class Outline(BaseModel):
    """What a `Data` is, besides its numbers; see there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    class_names: tuple[str, ...]
    groups: tuple[str, ...] | None
    seed: int
    notes: tuple[str, ...]
    bounds_doubt: str
    structure: Structure
    doubts: tuple[tuple[str, str], ...]
    undeclared_blocks: tuple[tuple[int, int], ...]
    public: int | None = Field(None, ge=1)  # how many public records there are
    transfer: tuple[str, tuple[str, ...]] | None = None  # name and classes of another task


Arrays = dict[str, np.ndarray[Any, Any]]


class _Labels(BaseModel):
    """The arrays of an outline, as they have to fit together."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    outline: Outline
    arrays: Arrays

    @model_validator(mode="after")
    def _fit(self) -> Self:
        y, groups, classes = self.arrays["non_members"], self.outline.groups, len(self.outline.class_names)
        everybody = [y, *(self.arrays[name] for name in ("members", "forgotten") if name in self.arrays)]
        for labels in everybody:
            of_classes = labels.dtype == np.int64 and labels.ndim == 1 and classes > 1
            of_values = labels.dtype == np.float32 and labels.ndim == 2 and not classes
            if not len(labels) or not (of_classes or of_values) or not np.isfinite(labels).all():
                raise ValueError("the labels are neither classes nor values")
            if of_classes and not 0 <= labels.min() <= labels.max() < classes:
                raise ValueError("a label is of no class")
        if groups is not None and len(groups) != len(y):
            raise ValueError("there is not one group for each record")
        task = self.outline.transfer
        asked = [] if task is None else [self.arrays[name] for name in TRANSFER]
        for labels in asked:
            if labels.dtype != np.int64 or labels.ndim != 1 or not len(labels):
                raise ValueError("the labels of another task are no classes")
            if task is not None and not 0 <= labels.min() <= labels.max() < len(task[1]):
                raise ValueError("a label of another task is of no class")
        named = {name: self.arrays[name] for name in PERSONS if name in self.arrays}
        lengths = [(one.dtype == np.int64, one.shape) for one in named.values()]
        if named and ("members" not in self.arrays or lengths != [(True, (len(own),)) for own in everybody[::-1]]):
            raise ValueError("there is not one person for each record")
        if (
            math.prod(self.outline.shape) * (sum(map(len, [*everybody, *asked])) + (self.outline.public or 0))
            > MOST_VALUES
        ):
            raise ValueError("the records are larger than any")
        return self


def outline(data: Data) -> tuple[Outline, Arrays]:
    """The outline, and the arrays `members`, `non_members`, `forgotten`, `transfer_members`, `transfer_evaluation`
    (what a model should answer), `low`, `high`.
    """
    found = Outline(
        name=data.name,
        digest=data.digest,
        shape=data.shape,
        class_names=data.class_names,
        groups=data.groups,
        seed=data.seed,
        notes=data.notes,
        bounds_doubt=data.bounds_doubt,
        structure=data.structure,
        doubts=data.doubts,
        undeclared_blocks=data.undeclared_blocks,
        public=None if data.public is None else len(data.public),
        transfer=None if data.transfer is None else (data.transfer.name, data.transfer.class_names),
    )
    arrays = {"non_members": data.non_members.y, "low": data.bounds.low, "high": data.bounds.high}
    arrays |= {} if data.members is None else {"members": data.members.y}
    arrays |= {} if data.forgotten is None else {"forgotten": data.forgotten.y}
    if data.transfer is not None:
        arrays |= dict(zip(TRANSFER, (data.transfer.members.y, data.transfer.evaluation.y), strict=True))
    if data.persons is not None:
        arrays |= {PERSONS[0]: data.persons.members, PERSONS[1]: data.persons.non_members}
    return found, {name: tensor.cpu().numpy() for name, tensor in arrays.items()}


def data_of(found: Outline, arrays: Arrays) -> Data:
    """The data of an outline, every input of which is 0.

    Raises:
        ValueError, KeyError, InputError: the arrays do not fit together.
    """
    _Labels(outline=found, arrays=arrays)
    low, high = (torch.from_numpy(np.array(arrays[name])) for name in ("low", "high"))
    held, whole = found.structure.held_in(found.shape), found.structure.whole_in(found.shape)
    non_members = _records(arrays["non_members"], found.shape)
    numbers = [torch.from_numpy(np.array(arrays[name])) for name in PERSONS if name in arrays]
    persons = Persons(*numbers) if numbers else None
    task = None
    if found.transfer is not None:
        trained, unseen = (_records(arrays[name], found.shape) for name in TRANSFER)
        task = NewTask(found.transfer[0], trained, unseen, found.transfer[1])
    values: dict[str, Any] = {
        **{name: getattr(found, name) for name in Outline.model_fields if name not in ("digest", "shape", "transfer")},
        **{
            name: None if name not in arrays else _records(arrays[name], found.shape)
            for name in ("members", "forgotten")
        },
        "non_members": non_members,
        "public": None if found.public is None else torch.zeros(()).expand(found.public, *found.shape),
        "persons": persons,
        "transfer": task,
        "bounds": Bounds(low, high, held, whole),
        "_split": split(len(non_members), found.seed),
        "digest": found.digest,
    }
    data = object.__new__(Data)  # the checks of its constructor are for inputs
    data.__dict__.update(values)
    return data


def _records(y: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Records:
    x: Tensor = torch.zeros(()).expand(len(y), *shape)
    return Records(x, torch.from_numpy(np.array(y)))
