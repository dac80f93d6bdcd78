"""What an attacker asks: its own records, and mixes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...targets.data.records import Records
from ...targets.data.structure import PLAIN, Structure
from ...targets.seeds import generator
from .mixing import mixed


def _own_order(attacker: Records, seed: int) -> Tensor:
    return torch.randperm(len(attacker), generator=generator(seed, "own records")).to(attacker.y.device)


def choose_queries(attacker: Records, count: int, *, seed: int, structure: Structure = PLAIN) -> Tensor:
    """What is asked: the attacker's records in random order, then mixes of two of them; a smaller budget is a prefix.

    Args:
        count: queries to choose.
        structure: of the records; a mix is one as well.

    Returns:
        float32 [count, *shape].
    """
    x = attacker.x[_own_order(attacker, seed)[:count]]
    more = count - len(x)
    if more <= 0:
        return x
    chance = torch.rand(more, 3, generator=generator(seed, "mixes"), dtype=torch.float64).to(x.device)
    first = (chance[:, 0] * len(attacker)).long()
    second = (first + 1 + (chance[:, 1] * (len(attacker) - 1)).long()) % len(attacker)  # another one, where there is
    share = 0.5 + 0.5 * chance[:, 2]
    return torch.cat([x, mixed(attacker.x[first], attacker.x[second], share, structure, seed=seed)])


def choose_labels(attacker: Records, count: int, *, seed: int) -> Tensor:
    """The true labels of the attacker's own records among the queries, int64 [min(count, own)], in their order."""
    return attacker.y[_own_order(attacker, seed)[:count]]
