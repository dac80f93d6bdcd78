"""Another task for an audit's models, from an `.npz` that may come from a stranger."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError, UnsafeInput, quoted
from ..checks import shown_range
from ..data import Data
from ..declared import Declared
from ..npz import load_npz
from ..records import Bounds, Records
from .task import NewTask, check_shape


def load_new_task(path: Path, data: Data, *, name: str | None = None) -> NewTask:
    """The task in a file as `load_npz` takes it. The training records are the members; the classes that they have
    are numbered anew, in the old order.

    Args:
        data: what the models were trained for: its bounds hold for these records too.
        name: what the report calls it; else the file's name.

    Raises:
        InputError, UnsafeInput: as `load_npz`; there are no training records; records of another shape, or a test
            record of a class that was not trained on.
    """
    where = f"The other task (data.transfer, {quoted(path.name)})"
    widest = Bounds.of(
        float(data.bounds.low.min()), float(data.bounds.high.max())
    )  # of all features: shapes may differ
    try:
        found = load_npz(
            path,
            bounds=widest,
            name=name,
            seed=data.seed,
            declared=Declared(tokens=data.structure.tokens),
        )
    except UnsafeInput as error:
        raise UnsafeInput(f"{where}: {error}") from None
    except InputError as error:
        raise InputError(f"{where} must be an npz in the units of the audit's own data. {error}") from None
    if found.members is None:
        raise InputError(
            f"{where} has no training records, on which a new model could be trained. Add x_train and y_train."
        )
    if found.forgotten is not None:
        raise InputError(f"{where} has an array forget. Leave it out: nothing of another task is to be forgotten.")
    known, unseen = found.members.y.unique(), found.non_members.y
    strange = unseen[~torch.isin(unseen, known)]
    if len(strange):
        raise InputError(
            f"{where} has test records of class {quoted(found.class_names[int(strange[0])])}, of which no training "
            "record is. Give training records of every class, or leave such test records out."
        )

    def numbered(labels: Tensor) -> Tensor:
        return torch.searchsorted(known, labels)

    members, tested = found.members, found.non_members
    task = NewTask(
        found.name,
        Records(members.x, numbered(members.y)),
        Records(tested.x, numbered(tested.y)),
        tuple(found.class_names[int(label)] for label in known),
    )
    check_shape(task, data.shape)
    for split, x in (("x_train", members.x), ("x_test", tested.x)):
        outside = ((x < data.bounds.low) | (x > data.bounds.high)).flatten(1).any(1)
        if outside.any():
            raise InputError(
                f"{where} has records with a feature outside of its bounds ({split}, first in record "
                f"{int(outside.nonzero()[0])}), which are those of the audit's own data: {shown_range(data.bounds)}. "
                "Scale each feature as the model's own records are."
            )
    return task
