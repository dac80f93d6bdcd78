"""A model of any kind as the attacks ask it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from ....targets.data.records import Bounds, Records
from ....targets.errors import NotApplicable
from ....targets.interface.assumptions import Assumptions
from ....targets.interface.finished_model import Differentiable, deployed, file_twin
from ....targets.model import Target, TorchTarget, frozen_copy, laid_out
from ....targets.temporary import scratch
from ....targets.untrusted.model_file import read_model_file
from ...case import Case


@dataclass(frozen=True, eq=False)
class Attackable:
    """A model as `evade` asks it, to be opened once for many calls (`attackable`).

    Args:
        deployed: whose answers decide.
        twin: whose gradients are followed; None: only answers are used.
    """

    deployed: Target
    twin: nn.Module | None


def attackable(
    target: nn.Module | Path | str | bytes | Target | Attackable,
    shape: tuple[int, ...],
    assumptions: Assumptions | None = None,
) -> Attackable:
    """What can be attacked of a model.

    Args:
        target: a torch module (copied, in evaluation mode); an ONNX or TFLite file, or the bytes of one, run by its
            runtime and followed through its twin; or anything with `logits`, of which only answers are used.
        shape: of a record. A file may take the same values in another shape.
        assumptions: how a file's inputs and outputs are to be read. None: as they are, its outputs one to a class, or
            one alone the logit of the second of two classes.

    Raises:
        InputError, UnsafeInput: the file is refused (`targets.untrusted.model_file.read_model_file`).
    """
    if isinstance(target, Attackable):
        return target
    if isinstance(target, nn.Module):
        module = frozen_copy(target)
        return Attackable(TorchTarget(module), module)
    if isinstance(target, bytes):
        with scratch() as folder:
            path = folder / "model"
            path.write_bytes(target)
            return attackable(path, shape, assumptions)
    if not isinstance(target, str | Path):
        return Attackable(target, None)
    file = read_model_file(Path(target), shape)
    if assumptions is None:
        declared = file.facts.inputs[0].shape[1:]
        record = tuple(size for size in declared if isinstance(size, int))
        assumptions = Assumptions(record=record if len(record) == len(declared) else shape)
    twin = None
    with suppress(NotApplicable):  # an operator that has no twin
        twin = Differentiable(file_twin(file, assumptions.output), assumptions).eval()
    return Attackable(deployed(file, assumptions), twin)


def case_of(opened: Attackable, records: Records, parent: nn.Module | None = None) -> Case:
    """What the parts of an attack expect; the records have the classes that the attacker starts from, or wants.

    A torch module is searched through a copy that answers faster (`laid_out`); `evade` asks itself at the end.
    """
    deployed = opened.deployed
    if isinstance(deployed, TorchTarget):
        deployed = TorchTarget(laid_out(deployed.module, records.x))
    low, high = float(records.x.min()), float(records.x.max())
    return Case(
        deployed=deployed,
        twin=opened.twin,
        native=opened.twin,
        parent=parent,
        evaluation=records,
        ids=np.arange(len(records)),
        attacker=Records(records.x[:0], records.y[:0]),
        bounds=Bounds.of(low, high if high > low else low + 1),
        classes=int(deployed.logits(records.x[:1]).shape[1]),
    )
