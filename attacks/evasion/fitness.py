"""Whether inputs are pixels at all, seen before any model is trained: from the records and the model's structure."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch

from ...targets.model import TorchTarget
from ..case import Case
from ..preparation import Scope
from .categories import ASKED, LEAST_RECORDS, MOST_RECORDS, not_pixels, one_hot, without_held


def seen_unfit(scope: Scope) -> str | None:
    """Why evasion in pixels makes no sense here, in a phrase; None: it may make sense, or only a run can tell.

    Which numbers a model looks up is decided by its layers and not by its weights, so that an untrained one shows it.
    """
    data, parent = scope.data, scope.reference.parent
    seen = data.non_members.take(torch.arange(min(len(data.non_members), MOST_RECORDS)))
    structure = data.structure
    held = structure.held_in(data.shape)
    if structure.tokens:
        return "token inputs"
    if len(seen) < LEAST_RECORDS:
        return None
    if held is not None and bool(held.all()):
        return "inputs of which nothing may change"
    found = one_hot(without_held(seen.x, held))
    few = seen.x[:ASKED]
    fractions = (few != few.round()).any(0)
    if found is None and bool((fractions if held is None else fractions | held).all()):
        return None  # between whole numbers in every place: nothing to look up
    phrase = "token inputs" if found is None else "one-hot inputs"
    if parent is None:
        return None if found is None else phrase
    with suppress(Exception):  # a model that cannot be built or run is refused elsewhere, in words of its own
        module = parent.architecture.blank().eval().requires_grad_(False)
        ids = np.arange(len(seen))
        case = Case(
            TorchTarget(module), module, module, module, seen, ids, seen, data.bounds, data.classes, structure=structure
        )
        return None if not_pixels(case) is None else phrase
    return None
