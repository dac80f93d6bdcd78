"""Inputs that are no pixels: one-hot blocks and token ids, which a ball of radius epsilon means nothing for.

A change of .1 in a one-hot block or in a token id is no input that anybody could send, so robust accuracy in pixels
would be a figure about nothing. Both are visible in the data and in the model's gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attack import Case, Ledger
from .engine import Gradients, usable

LEAST_RECORDS = 20  # fewer may look like categories by accident
MOST_RECORDS = 2000  # looked at
ASKED = 32  # records whose gradients are looked at
FRACTION = 0.4  # added to whole numbers: a look-up truncates or rounds it away
CURE = (
    "Robust accuracy in pixels says nothing there. Leave evasion out of `attacks`, and judge by a policy that does not "
    "limit robust_accuracy."
)


def not_pixels(case: Case) -> str | None:
    """Why a ball around these inputs makes no sense, in two sentences; None where it may."""
    x = torch.cat([case.evaluation.x, case.attacker.x])[:MOST_RECORDS]
    if len(x) < LEAST_RECORDS:
        return None
    found = one_hot(x)
    if found is not None:
        return f"not applicable: {found} (one-hot categories), and an input between two categories is none. {CURE}"
    if looked_up(case):
        return (
            f"not applicable: the inputs are whole numbers from {x.min():g} to {x.max():g} that the model looks up "
            f"(token ids), and a neighbouring number is another word. {CURE}"
        )
    return None


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


def one_hot_blocks(x: Tensor) -> list[tuple[int, int]]:
    """First and last column of each one-hot block of a table [n, columns].

    A block has at least two columns that vary; a column that never does may lie inside it (a category nobody has).
    """
    low, high = x.amin(0), x.amax(0)
    two_values = ((x == low) | (x == high)).all(0)
    upper = ((x == high) & (high > low)).to(torch.int32)
    varies = (high > low).tolist()
    binary = two_values.tolist()
    blocks: list[tuple[int, int]] = []
    first, columns = 0, x.shape[1]
    while first < columns:
        total = torch.zeros(len(x), dtype=torch.int32)
        end = None
        for last in range(first, columns):
            if not binary[last]:
                break
            total += upper[:, last].cpu()
            if int(total.max()) > 1:
                break
            if int(total.min()) == 1 and sum(varies[first : last + 1]) >= 2:
                end = last
                break
        if end is None or not varies[first]:
            first += 1
        else:
            blocks.append((first, end))
            first = end + 1
    return blocks


def looked_up(case: Case) -> bool:
    """Whether whole-number inputs reach the model as keys of a table.

    They do where no gradient comes back even with a slope past every rounding, and where a fraction more changes no
    answer at all: whole-number pixels have neighbours, and a gradient leads to them.
    """
    module = case.twin if case.twin is not None else case.native
    x, y = case.evaluation.x[:ASKED], case.evaluation.y[:ASKED]
    if module is None or not bool((case.evaluation.x == case.evaluation.x.round()).all()):
        return False
    if bool((case.bounds.high - case.bounds.low <= 1).all()):
        return False  # 0 and 1 are no vocabulary
    device = next(module.parameters(), x).device
    if bool(usable(Gradients(module, "margin", Ledger())(x.to(device), y.to(device)).gradient).any()):
        return False
    upward = x + FRACTION <= case.bounds.high
    moved = torch.where(upward, x + FRACTION, x)
    return bool((case.deployed.logits(moved) == case.deployed.logits(x)).all())
