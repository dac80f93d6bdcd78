"""Queries that are none of the records a model is for: pieces of several ones, and noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....targets.data.records import Records
from ....targets.data.structure import PLAIN, Structure
from ....targets.seeds import generator

PARTS = 4  # along each of the last two axes of an image


def composed(attacker: Records, count: int, *, seed: int, structure: Structure = PLAIN) -> Tensor:
    """Records each piece of which is from another, randomly drawn one: float32 [count, *shape].

    A piece of a table is a column or a one-hot block, of a sequence of ids a place, of anything else a tile of the last
    two axes.
    """
    own = attacker.x.flatten(1)
    x = own.new_empty(count, own.shape[1])
    for number, columns in enumerate(_pieces(tuple(attacker.x.shape[1:]), structure)):
        donor = torch.randint(len(own), (count,), generator=generator(seed, "composed", number)).to(own.device)
        x[:, columns] = own[donor[:, None], columns.to(own.device)]
    return x.view(count, *attacker.x.shape[1:])


def noise(attacker: Records, count: int, *, seed: int, structure: Structure = PLAIN) -> Tensor:
    """Values drawn evenly from the range of the attacker's records, of a table column by column.

    Categories and ids are drawn from those that it has at that place, whole numbers are whole.
    """
    own, stream = attacker.x, generator(seed, "noise")
    if structure.tokens:
        return composed(attacker, count, seed=seed, structure=structure)
    dims = tuple(range(own.dim())) if own.dim() > 2 else 0
    low, high = own.amin(dims), own.amax(dims)
    x = low + (high - low) * torch.rand(count, *own.shape[1:], generator=stream).to(own.device)
    named = [*structure.codes, *(at for block in structure.one_hot for at in block)]
    if named:
        x[:, named] = composed(attacker, count, seed=seed, structure=structure)[:, named]
    return structure.rounded(x)


def _pieces(shape: tuple[int, ...], structure: Structure) -> list[Tensor]:
    """Which values of a flat record belong together: int64, one tensor a piece."""
    if len(shape) == 1 and not structure.tokens:
        blocks = list(structure.one_hot)
        within = {at for block in blocks for at in block}
        return [torch.tensor(block) for block in (*blocks, *((at,) for at in range(shape[0]) if at not in within))]
    places = torch.arange(math.prod(shape)).view(shape)
    if structure.tokens:
        return list(places.flatten()[:, None])
    pieces = [places]
    for axis in (-1, -2):
        if len(shape) + axis >= 0:
            pieces = [part for piece in pieces for part in piece.tensor_split(min(PARTS, shape[axis]), axis)]
    return [piece.flatten() for piece in pieces]
