"""Altered copies of a record whose labels say how sure a model is of it: shifted images, exchanged features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.data.records import Records
from ...targets.data.structure import Structure
from ...targets.seeds import derive, uniform

SHARES = (0.1, 0.2, 0.4)  # of the features, that one copy takes from another record
SMALLEST_IMAGE = 4  # pixels to a side

Ids = np.ndarray[Any, np.dtype[np.int64]]


def is_image(shape: tuple[int, ...], structure: Structure) -> bool:
    """Whether a record [channels, height, width] can be shifted."""
    return len(shape) >= 3 and min(shape[-2:]) >= SMALLEST_IMAGE and not structure.declared


def units(shape: tuple[int, ...], blocks: tuple[tuple[int, ...], ...]) -> Tensor:
    """int64 [features]: which features of a flat record are exchanged together; a one-hot block is one unit.

    Args:
        blocks: positions of features.
    """
    features = int(np.prod(shape))
    unit = torch.arange(features)
    for block in blocks:
        unit[list(block)] = min(block)
    numbered: Tensor = unit.unique(return_inverse=True)[1]
    return numbered


def altered(
    x: Tensor,
    ids: Ids,
    count: int,
    others: Records,
    structure: Structure,
    blocks: tuple[tuple[int, ...], ...],
    seed: int,
) -> Iterator[Tensor]:
    """`count` times the records x [n, *shape], each time altered in another way.

    Images are shifted by a few pixels, the smallest ways first, their edges repeated (Choquette-Choo et al. 2021,
    section 5.1). Of anything else a share of the features is that of another record, which somebody could have sent:
    it needs no bounds and spares one-hot blocks, whole numbers and ids.

    Args:
        ids: a record's noise follows from them and the seed.
        others: the attacker's own records, which features are taken from.
    """
    if is_image(tuple(x.shape[1:]), structure):
        for down, right in _shifts(count):
            yield _shifted(x, down, right)
        return
    flat, own = x.flatten(1), others.x.flatten(1).to(x.device)
    unit = units(tuple(x.shape[1:]), blocks)
    for draw in range(count):
        noise = uniform(derive(seed, "exchange", draw), ids, (1 + int(unit.max()) + 1,))
        donor = own[(noise[:, 0] * len(own)).long().clamp_max(len(own) - 1).to(x.device)]
        taken = (noise[:, 1:] < SHARES[draw % len(SHARES)])[:, unit].to(x.device)
        yield torch.where(taken, donor, flat).view_as(x)


def _shifts(count: int) -> list[tuple[int, int]]:
    """The shortest ways but the one that stays, in a fixed order."""
    reach = range(-12, 13)
    ways = sorted(
        ((a, b) for a in reach for b in reach if (a, b) != (0, 0)), key=lambda way: (way[0] ** 2 + way[1] ** 2, way)
    )
    return ways[:count]


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    rows = (torch.arange(x.shape[-2], device=x.device) - down).clamp(0, x.shape[-2] - 1)
    columns = (torch.arange(x.shape[-1], device=x.device) - right).clamp(0, x.shape[-1] - 1)
    return x[..., rows, :][..., columns]
