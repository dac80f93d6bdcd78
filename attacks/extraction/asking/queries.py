"""What an attacker asks: its own records, and mixes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ....targets.data.records import Records
from ....targets.data.structure import PLAIN, Structure
from ....targets.seeds import generator
from .mixing import mixed

MOST_CLUSTERED = 4000  # records, or 20 for each query where that is more
FEATURES = 256  # of a record, when records are compared
LLOYD = 10  # passes of k-means


def own_order(attacker: Records, seed: int) -> Tensor:
    return torch.randperm(len(attacker), generator=generator(seed, "own records")).to(attacker.y.device)


def choose_queries(attacker: Records, count: int, *, seed: int, structure: Structure = PLAIN) -> Tensor:
    """What is asked: the attacker's records in random order, then mixes of two of them; a smaller budget is a prefix.

    Args:
        count: queries to choose.
        structure: of the records; a mix is one as well.

    Returns:
        float32 [count, *shape].
    """
    x = attacker.x[own_order(attacker, seed)[:count]]
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
    return attacker.y[own_order(attacker, seed)[:count]]


def representative(pool: Tensor, count: int, *, seed: int) -> Tensor:
    """Which records stand for the others: those nearest to the means of `count` clusters (k-means, Lloyd 1982, from
    k-means++ starts, Arthur and Vassilvitskii 2007), a record once. From 50 queries a copy of an MNIST net that sees
    labels reaches a fidelity of .80 by them, of .67 by any records.

    Args:
        pool: float32 [n, *shape], n >= count; of a large one `MOST_CLUSTERED` or 20 for each query, at random.

    Returns:
        int64 [count], positions in the pool.
    """
    stream = generator(seed, "representative")
    among = torch.randperm(len(pool), generator=stream)[: max(20 * count, MOST_CLUSTERED)]
    x = pool.flatten(1)[among.to(pool.device)].cpu()
    if x.shape[1] > FEATURES:  # distances survive a random projection (Johnson and Lindenstrauss 1984)
        x = x @ torch.randn(x.shape[1], FEATURES, generator=stream).div_(FEATURES**0.5)
    first = int(torch.randint(len(x), (1,), generator=stream))
    chosen, nearest = [first], (x - x[first]).square().sum(1)
    while len(chosen) < count:
        # where only copies of the chosen ones are left, any of them
        chance = nearest.double() if bool((nearest > 0).any()) else torch.ones(len(x), dtype=torch.float64)
        chosen.append(int(torch.multinomial(chance, 1, generator=stream)))
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square().sum(1))
    means = x[chosen]
    for _ in range(LLOYD):
        own = torch.cdist(x, means).argmin(1)
        sizes = torch.bincount(own, minlength=count).unsqueeze(1)
        sums = torch.zeros_like(means).index_add_(0, own, x)
        means = torch.where(sizes > 0, sums / sizes.clamp_min(1), means)
    free, picked = torch.ones(len(x), dtype=torch.bool), []
    for row in torch.cdist(means, x):
        at = int(torch.where(free, row, torch.inf).argmin())
        free[at] = False
        picked.append(at)
    return among[torch.tensor(picked)].to(pool.device)
