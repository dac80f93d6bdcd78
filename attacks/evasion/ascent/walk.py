"""Walks away from records: how evenly a model becomes less sure of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ....targets.seeds import derive, uniform
from ...access import Ledger
from .gradients import Gradients

WALKS, STEPS = 48, 17  # records that are walked away from, at most, and how far


def falls(
    module: nn.Module,
    x: Tensor,
    inside: Callable[[Tensor], Tensor],
    first: float | Tensor,
    seed: int,
    ledger: Ledger,
    batch: int = WALKS,
) -> Tensor:
    """float32 [min(n, WALKS)], of what a margin loses on a walk the share that goes in one step; 0: it loses nothing.

    A walk goes up or down at random in each element, from `first` in steps that grow by a quarter to many times that.
    Of honest nets the median record loses .2 to .6 of its fall in one step, more where the input is rounded; of nets
    that memorised their records, or refuse what is not like them, .9 and more.

    Args:
        x: float32 [n, *shape], on the module's device; inside: the nearest input that is allowed, of inputs like x.
        first: step, in units of x, broadcastable to it.
        batch: records of a pass.
    """
    x = x[:WALKS]
    noise = uniform(derive(seed, "walk"), np.arange(len(x)), tuple(x.shape[1:])).to(x.device)
    sizes = [0.0, *(1.25**step for step in range(STEPS))]
    along = [inside(x + size * first * (noise - 0.5).sign()) for size in sizes]
    model = Gradients(module, "margin", ledger)
    y = model.answers(x)
    passes = zip(torch.cat(along).split(batch), y.repeat(len(along)).split(batch), strict=True)
    margins = torch.cat([model.margins(*one) for one in passes]).view(len(along), -1).T.nan_to_num(0.0)
    largest = (margins[:, :-1] - margins[:, 1:]).amax(1)
    whole = margins.amax(1) - margins.amin(1)
    return torch.where(whole > 0, largest / whole, 0.0).clamp(0, 1)
