"""The weights of copies, as they are stored."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from ...targets.form import Array, MisfitError
from ...targets.model import TorchTarget
from ...targets.steps import Arrays
from ..access import Ledger
from .copying import Copy, Pupil, Tutor

WEIGHTS = {  # of a copy that is kept
    "built-in": Array("bool", (1,)),
    "held-out": Array("bool", (None,)),
    "*": Array(finite=False),
}


def weights(tutor: Tutor, own: Copy, rival: Pupil | None, test: Pupil | None, spent: Ledger) -> Arrays:
    """The weights of a copy (`copy/...`), whether the rival was better (`built-in`), and, before it learnt them, which
    of the answers that a pupil holds out it gave (`held-out`, bool [h]; none without such a test).
    """
    best = own if rival is None else tutor.better(own, rival)
    spent.add(best.spent)
    right = np.zeros(0, dtype=bool)
    asked = torch.zeros(0) if test is None else test.halves()[1]  # of few queries none
    if test is not None and len(asked):
        records = test.lesson.records.take(asked.to(test.lesson.records.x.device))
        right = (TorchTarget(best.before).logits(records.x).argmax(1) == records.y).cpu().numpy()
        spent.forwards += len(right)
    state = best.module.state_dict().items()
    arrays = {f"copy/{name}": tensor.detach().cpu().numpy().copy() for name, tensor in state}
    return {"built-in": np.array([best.module is not own.module]), "held-out": right, **arrays}


def with_state(module: nn.Module, arrays: Arrays, prefix: str) -> nn.Module:
    """A copy of the module with the weights stored under `prefix`, to be asked or trained."""
    module = copy.deepcopy(module)
    state = {name: torch.from_numpy(np.array(arrays[f"{prefix}/{name}"])) for name in module.state_dict()}
    module.load_state_dict(state)
    return module.eval()


def check_copy(start: nn.Module, rival: nn.Module | None, kept: Arrays) -> None:
    """Raises MisfitError unless these are weights of the module started from, or of its rival."""
    try:
        with_state(rival if kept["built-in"].item() else start, kept, "copy")  # type: ignore[arg-type]  # None fails too
    except Exception as error:
        raise MisfitError(str(error)) from error
