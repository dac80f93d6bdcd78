"""Mixes of two records that are records themselves: numbers in between, categories and ids of one or the other."""

from __future__ import annotations

import torch
from torch import Tensor

from ....targets.data.structure import Structure
from ....targets.seeds import generator


def mixed(first: Tensor, second: Tensor, share: Tensor, structure: Structure, *, seed: int) -> Tensor:
    """Records [n, *shape] between two others: numbers by a convex mix, which stays within the bounds, and is rounded
    where they are whole; a one-hot block or a code from one of the two, the first with probability `share`. Sequences
    of ids are spliced: the beginning of the first, so much of it as `share` says, and the end of the second.

    Args:
        first, second: float32 [n, *shape].
        share: of the first, in [0, 1], [n].
    """
    wide = share.to(first.dtype).view(-1, *[1] * (first.dim() - 1))
    if structure.tokens:
        place = torch.arange(first.shape[1], device=first.device).view(1, -1, *[1] * (first.dim() - 2))
        return torch.where(place < wide * first.shape[1], first, second)
    x = torch.lerp(second, first, wide)
    groups = [*structure.one_hot, *((at,) for at in structure.codes)]
    chance = torch.rand(len(x), len(groups), generator=generator(seed, "categories"), dtype=torch.float64)
    from_first = chance.to(share.device) < share[:, None]
    for own, group in zip(from_first.T, groups, strict=True):
        columns = list(group)
        x[:, columns] = torch.where(own[:, None], first[:, columns], second[:, columns])
    return structure.rounded(x)
