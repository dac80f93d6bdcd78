"""Which records to ask next: those that a copy is least certain of, and of them such as are unlike each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....targets.data.structure import PLAIN, Structure
from ....targets.model import TorchTarget
from .queries import representative

WIDER = 2  # times the records asked for, from which those unlike each other are taken


def least_certain(module: nn.Module, pool: Tensor, count: int, *, seed: int, structure: Structure = PLAIN) -> Tensor:
    """The records with the smallest margin between the copy's two largest probabilities, thinned by k-means.

    Margin sampling (Scheffer et al. 2001) in the batches of Citovsky et al. 2021 (arXiv:2107.14263): the least certain
    ones alone are many of one kind.

    Args:
        pool: float32 [n, *shape], n >= count.

    Returns:
        int64 [count], positions in the pool.
    """
    largest = torch.softmax(TorchTarget(module).logits(pool), 1).topk(2).values
    uncertain = (largest[:, 0] - largest[:, 1]).argsort(stable=True)
    if structure.tokens:  # ids have no distances
        return uncertain[:count]
    uncertain = uncertain[: WIDER * count]
    return uncertain[representative(pool[uncertain], count, seed=seed)]
