"""Inputs that are no pixels: one-hot blocks and token ids, which a ball of radius epsilon means nothing for.

A change of .1 in a one-hot block or in a token id is no input that anybody could send, so robust accuracy in pixels
would be a figure about nothing. What is declared is held (`Bounds.held`), and the attack changes the rest. What is not
declared is visible in the data and in the model's gradients, and is named.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...targets.data.data import Data
from ...targets.data.one_hot import LEAST_RECORDS, MOST_RECORDS, one_hot_blocks, without
from ...targets.data.records import Bounds
from ...targets.data.structure import Structure
from ...targets.model import TorchTarget, device_of
from ..access import Ledger
from ..case import Case
from ..preparation import Scope
from .ascent.gradients import Gradients

ASKED = 32  # records whose gradients are looked at
LEVELS = 255  # steps of an 8-bit pixel
BESIDE = 0.01  # of a step: so far beside the grid a value may be by rounding to float32
FRACTION = 0.4  # added to whole numbers: a look-up truncates or rounds it away
INSTEAD = "To be judged by the rest, name no policy, or one that does not limit robust_accuracy."
EXCHANGE = "The attack substitution exchanges whole features and tokens."
TOKENS = f"{EXCHANGE} Membership and extraction are measured on them too."


def not_pixels(case: Case) -> str | None:
    """Why a ball around these inputs makes no sense, in a few sentences; None where it may."""
    structure, shape = case.structure, tuple(case.evaluation.x.shape[1:])
    if structure.tokens:
        why = "the inputs are token ids, and a neighbouring id means another thing"
        return f"not applicable: {why}. {TOKENS} {INSTEAD}"
    held = structure.held_in(shape)
    if held is not None and bool(held.all()):
        return (
            f"not applicable: all {held.numel()} features of a record are declared immutable, one-hot or codes of "
            f"categories, and within epsilon no category can change, so that nothing is left to change. {INSTEAD}"
        )
    x = _looked_at(case)
    if len(x) < LEAST_RECORDS:
        return None
    found = one_hot(without(x, held))
    if found is not None:
        blocks = one_hot_blocks(without(x, held)) if x.dim() == 2 else []
        declare = f"Declare them as `one_hot: [{', '.join(f'[{first}-{last}]' for first, last in blocks)}]` in `data`, "
        declare += "and evasion changes the other columns only. "
        return (
            f"not applicable: {found} (one-hot categories), and an input between two categories is none. "
            f"{declare + EXCHANGE if blocks else INSTEAD}"
        )
    keys = looked_up(case, x)
    if keys.any():
        every = bool(keys.all())
        where = "the inputs are" if every else f"{int(keys.sum())} of {keys.numel()} inputs of a record are"
        columns = ", ".join(f"{at}: codes" for at in keys.nonzero().flatten().tolist()) if keys.dim() == 1 else ""
        declare = f"Declare them as `categorical: {{{columns}}}` in `data`, and evasion changes the other columns only."
        if every or not columns:
            declare = f"Say `tokens: true` in `data` if that is so. {TOKENS} {INSTEAD}"
        return (
            f"not applicable: {where} whole numbers from {x[:, keys].min():g} to {x[:, keys].max():g} that the model "
            f"looks up (token ids, codes of categories), and a neighbouring number means another thing. {declare}"
        )
    return None


def nothing_to_change(epsilon: float, case: Case) -> str | None:
    """Why no value can change within epsilon, in a sentence; None where some can.

    A whole number changes by one or not at all.
    """
    bounds, shape = case.bounds, case.evaluation.x.shape[1:]
    if bounds.whole is None:
        return None
    stuck = bounds.whole & (epsilon * bounds.scale.expand(shape) < 1)
    if bounds.held is not None:
        stuck = stuck | bounds.held
    if not bool(stuck.all()):
        return None
    return (
        f"not applicable: no value can change within epsilon {epsilon:g}: all are declared whole numbers or immutable, "
        f"and epsilon is less than 1 of them. {INSTEAD}"
    )


def seen_step(x: Tensor, bounds: Bounds) -> float | None:
    """Of the grid that images or series x [n, *shape] lie on, the step in [0, 1] units: 1/255 of the bounds, as 8-bit
    pixels do, or whole numbers of another range; None: none is seen, or x is a table.
    """
    if x.dim() < 3 or bool((x == x[:1]).all()):
        return None
    shares = (x - bounds.low) / bounds.scale
    for step in (1.0, 1 / float(bounds.scale.amin()), 1 / LEVELS):
        places = shares.double() / step
        if step <= 1 and bool(((places - places.round()).abs() <= BESIDE).all()):
            return step
    return None


def by_categories(data: Data) -> bool:
    """Whether some features are categories or tokens, declared or (one-hot blocks of a table) seen."""
    structure = data.structure
    return bool(structure.tokens or structure.one_hot or structure.codes or data.undeclared_blocks)


def without_ball(data: Data) -> bool:
    """Whether a ball around a record makes no sense, as far as declaration and undeclared blocks tell."""
    held = data.structure.held_in(data.shape)
    return bool(data.undeclared_blocks) or (held is not None and bool(held.all()))


def seen_unfit(scope: Scope) -> str | None:
    """Why a ball around these inputs makes no sense, in a phrase; None: it may, or only a run can tell.

    Seen before any model is trained, from the records and the model's structure: which numbers a model looks up is
    decided by its layers and not by its weights.
    """
    data, parent = scope.data, scope.reference.parent
    if data.structure.tokens:
        return "token inputs"
    held = data.structure.held_in(data.shape)
    if held is not None and bool(held.all()):
        return "no feature may change"
    seen = data.non_members.take(torch.arange(min(len(data.non_members), MOST_RECORDS)))
    if len(seen) < LEAST_RECORDS:
        return None
    if one_hot(without(seen.x, held)) is not None:
        return "undeclared one-hot columns" if seen.x.dim() == 2 else "one-hot inputs"
    few = seen.x[:ASKED]
    if parent is None or bool((few != few.round()).any(0).all()):
        return None  # nothing to ask, or values between whole numbers in every place: nothing is looked up
    with suppress(Exception):  # a model that cannot be built or run is refused elsewhere, in words of its own
        module = parent.architecture.blank().eval().requires_grad_(False)
        case = Case(
            TorchTarget(module),
            module,
            module,
            module,
            seen,
            np.arange(len(seen)),
            seen,
            data.bounds,
            data.classes,
            structure=data.structure,
        )
        if not_pixels(case) is not None:
            return "token inputs" if bool(looked_up(case, seen.x).all()) else "undeclared codes of categories"
    return None


def known_structure(case: Case) -> Structure:
    """What is declared, and what else is visible: the blocks of a table, ids that the model looks up."""
    structure, x = case.structure, _looked_at(case)
    if structure.tokens or len(x) < LEAST_RECORDS:
        return structure
    held = structure.held_in(tuple(x.shape[1:]))
    keys = looked_up(case, x)
    if bool(keys.all()):
        return replace(structure, tokens=True)
    if x.dim() != 2:
        return structure
    blocks = tuple(tuple(range(first, last + 1)) for first, last in one_hot_blocks(without(x, held)))
    codes = sorted({*structure.codes, *keys.nonzero().flatten().tolist()})
    return replace(structure, one_hot=(*structure.one_hot, *blocks), codes=tuple(codes))


def _looked_at(case: Case) -> Tensor:
    return torch.cat([case.evaluation.x, case.attacker.x])[:MOST_RECORDS]


def one_hot(x: Tensor) -> str | None:
    """Where records x [n, *shape] hold one-hot categories, in words; None where they do not.

    In a table, neighbouring columns of two values each of which every record has exactly one at its upper value
    (standardised or not). In a sequence or image, 0/1 values that sum to 1 along an axis at every place (or to 0, where
    a place is padding).
    """
    if x.dim() == 2:
        blocks = one_hot_blocks(x)
        if not blocks:
            return None
        named = ", ".join(f"{first}-{last}" for first, last in blocks[:8]) + (", ..." if len(blocks) > 8 else "")
        count = sum(last - first + 1 for first, last in blocks)
        return f"columns {named} ({count} of {x.shape[1]}, counted from 0) each hold one 1 per block"
    if not bool(((x == 0) | (x == 1)).all()):
        return None
    for axis in range(1, x.dim()):
        total = x.sum(axis)
        if x.shape[axis] > 1 and bool((total <= 1).all()) and float(total.mean()) >= 0.5:
            return f"the values are 0 and 1 and hold a single 1 along axis {axis}"
    return None


def looked_up(case: Case, x: Tensor) -> Tensor:
    """bool [*shape]: the places of a record whose whole numbers reach the model as keys of a table.

    No gradient comes back to them even with a slope past every rounding; a fraction more there changes no answer, and
    one more does. Whole-number pixels have neighbours, and a gradient leads to them. A model without a differentiable
    form is judged by its answers alone: one more in every place changes them as much as another record does.

    Args:
        x: the records, float32 [n, *shape].

    Places that are declared are not among them.
    """
    low, high = x.amin(0), x.amax(0)
    whole = (x == x.round()).all(0) & (high - low > 1)  # 0 and 1 are no vocabulary
    held = case.structure.held_in(tuple(x.shape[1:]))
    whole = whole if held is None else whole & ~held.to(x.device)
    if not whole.any():
        return whole
    module = next((one for one in (case.twin, case.native, case.parent) if one is not None), None)
    asked, y = case.evaluation.x[:ASKED], case.evaluation.y[:ASKED]
    answers = case.deployed.logits(asked)
    if module is not None:
        device = device_of(module, asked.device)
        gradient = Gradients(module, "margin", Ledger())(asked.to(device), y.to(device)).gradient.to(asked.device)
        whole = whole & ~(gradient.nan_to_num(0.0) != 0).any(0)
        if not whole.any():
            return whole
    changed = [torch.where(whole & (asked + step <= high), asked + step, asked) for step in (FRACTION, 1.0)]
    fraction, one = (case.deployed.logits(inputs) for inputs in changed)
    if not bool((fraction == answers).all()) or bool((one == answers).all()):
        return torch.zeros_like(whole)
    if module is None:
        other = case.deployed.logits(asked.roll(1, 0))
        if float((one - answers).abs().mean()) < 0.5 * float((other - answers).abs().mean()):
            return torch.zeros_like(whole)
    return whole
