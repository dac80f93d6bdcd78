"""The records that a plan names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...targets.data.data import Data
from ...targets.data.digits import load_digits
from ...targets.data.records import Bounds
from ...targets.errors import InputError
from ..plan.plan import Plan
from ..plan.sections import MemoryData


def load_data(plan: Plan, folder: Path) -> Data:
    """The records that a plan names; paths are looked up in `folder`, where the plan lies.

    Raises:
        InputError, UnsafeInput: as the loaders do.
    """
    from ...targets.data.further.new_task import load_new_task

    data, source = _records(plan, folder), plan.data
    if isinstance(source, MemoryData) or source.transfer is None:
        return data
    return data.beside(load_new_task(folder / source.transfer.path, data, name=source.transfer.name))


def _records(plan: Plan, folder: Path) -> Data:
    from ...targets.data.csv import load_csv
    from ...targets.data.npz import load_npz

    source = plan.data
    if source.kind == "digits":
        return load_digits(plan.seed)
    if source.kind == "memory":
        raise InputError("data.kind memory is for crushproof.audit_model only: save the records as .npz and name it.")
    said: dict[str, Any] = {
        "bounds": Bounds.of(*source.bounds) if isinstance(source.bounds, tuple) else source.bounds,
        "class_names": None if source.class_names is None else tuple(source.class_names),
        "seed": plan.seed,
        "name": source.name,
        "regression": source.task == "regression",
        "declared": source.declared,
        "forget": folder / source.forget if isinstance(source.forget, str) else source.forget,
    }
    if source.kind == "npz":
        return load_npz(folder / source.path, **said)
    train = None if source.train_path is None else folder / source.train_path
    return load_csv(train, folder / source.test_path, label=source.label, drop=source.drop, **said)
