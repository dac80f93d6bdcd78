"""Queries made of earlier ones by the gradients of a copy (Papernot et al. 2017, arXiv:1602.02697)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....targets.data.structure import PLAIN, Structure
from ....targets.errors import NotApplicable
from ....targets.model import device_of, differentiable, records_at_once
from ....targets.seeds import derive, generator

STEP = 0.1  # of the range of the values among the attacker's records


def check_moves(x: Tensor, structure: Structure) -> None:
    """Raises NotApplicable where no value of a record can be moved a little."""
    held = structure.held_in(tuple(x.shape[1:]))
    if held is not None and bool(held.all()):
        raise NotApplicable(
            "The queries of Jacobian augmentation are records moved along a gradient, and these hold ids or categories "
            "only. Take another strategy, for example adaptive."
        )


def augmented(
    module: nn.Module,
    x: Tensor,
    labels: Tensor,
    own: Tensor,
    number: int,
    *,
    seed: int,
    structure: Structure = PLAIN,
) -> Tensor:
    """Each record moved by the sign of the gradient of the copy's probability of the answered label, in random order.

    Rounds move towards the label and away from it in turns (the periodic step of section 5.1): records of one class
    that the copy knows well, and others near its boundary. Categories stay as they are, whole numbers stay whole.

    Args:
        x: float32 [n, *shape]; labels: int64 [n], the target's answers.
        own: float32 [m, *shape], the attacker's records: moves are by a tenth of the range of their values, within it.
        number: of the round, from 0.

    Returns:
        float32 [n, *shape].
    """
    dims = tuple(range(own.dim())) if own.dim() > 2 else 0  # of a table, column by column
    low, high = own.amin(dims), own.amax(dims)
    step = (STEP if number % 2 else -STEP) * (high - low)
    device = device_of(module, x.device)
    moved = []
    for some, label in zip(*(t.split(records_at_once(x, module)) for t in (x, labels)), strict=True):
        leaf = some.to(device).clone().requires_grad_()
        with differentiable(module):
            score = F.log_softmax(module(leaf), 1).gather(1, label.to(device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, leaf)
        moved.append(torch.clamp(some + step * gradient.sign().to(x.device), low, high))
    new = torch.cat(moved)
    held = structure.held_in(tuple(x.shape[1:]))
    if held is not None:
        new = torch.where(held.to(x.device), x, new)
    new = structure.rounded(new)
    order = torch.randperm(len(x), generator=generator(derive(seed, "augmented", number), "order"))
    return new[order.to(x.device)]
