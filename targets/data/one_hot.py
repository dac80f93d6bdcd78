"""One-hot blocks of a table that nobody declared, as its records show them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_RECORDS = 20  # fewer may look like categories by accident
MOST_RECORDS = 2000  # looked at
LEAST_SHARE = 0.5  # of the records that an incomplete block must say something of
EXPECTED_OVERLAPS = 10  # records in which unrelated columns like those of a block would both be at their upper value


def without(x: Tensor, held: Tensor | None) -> Tensor:
    """x with values in the held places that look like no category."""
    if held is None:
        return x
    numbers = torch.arange(len(x), dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 1))
    return torch.where(held.to(x.device), numbers + math.pi, x)


def undeclared_blocks(x: Tensor, held: Tensor | None) -> tuple[tuple[int, int], ...]:
    """First and last column of each one-hot block of a table [n, columns]; none where there are too few records.

    Args:
        held: bool [columns], that are declared; None: none is.
    """
    x = x[:MOST_RECORDS]
    return tuple(one_hot_blocks(without(x, held))) if x.dim() == 2 and len(x) >= LEAST_RECORDS else ()


def one_hot_blocks(x: Tensor) -> list[tuple[int, int]]:
    """First and last column of each one-hot block of a table [n, columns].

    Neighbouring columns of two values each, of which a record has at most one at its upper value, and nearly always
    one: at least two of them vary. A block may leave out one category (all its columns are low then), where so many
    records without a single overlap are no accident.
    """
    low, high = x.amin(0), x.amax(0)
    binary = ((x == low) | (x == high)).all(0).tolist()
    upper = ((x == high) & (high > low)).T.contiguous().cpu()  # [columns, n]
    counts = upper.sum(1).double()
    blocks: list[tuple[int, int]] = []
    first, owner = 0, torch.full((len(x),), -1)  # the column at its upper value, by record, in the block so far

    def closed(last: int) -> bool:
        """Whether the columns first..last are a block, which is noted then."""
        varying = [column for column in range(first, last + 1) if counts[column]]
        share = float((owner >= 0).double().mean())
        own = counts[varying]
        overlaps = float((own.sum() ** 2 - own.square().sum()) / 2 / len(x))  # expected of unrelated columns
        found = len(varying) >= 2 and (share == 1 or (share >= LEAST_SHARE and overlaps >= EXPECTED_OVERLAPS))
        if found:
            blocks.append((varying[0], last))
        return found

    for column in range(x.shape[1]):
        if not binary[column]:
            closed(column - 1)
            first, owner = column + 1, torch.full_like(owner, -1)
            continue
        clash = owner[upper[column]]
        if bool((clash >= 0).any()):
            first = column if closed(column - 1) else int(clash.max()) + 1
            owner[owner < first] = -1
        owner[upper[column]] = column
        if bool((owner >= 0).all()) and closed(column):
            first, owner = column + 1, torch.full_like(owner, -1)
    closed(x.shape[1] - 1)
    return blocks
