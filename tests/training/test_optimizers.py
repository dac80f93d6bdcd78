"""Our optimisers against torch's classes: the same weights, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from crushproof.training.optimizers import AdamW, Sgd

RATES = (0.01, 0.03, 0.002)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_weights_are_those_of_torchs_class(kind: str, decay: float) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 3))
    theirs = copy.deepcopy(ours)
    reference: torch.optim.Optimizer = (
        torch.optim.AdamW(theirs.parameters(), weight_decay=decay)
        if kind == "adamw"
        else torch.optim.SGD(theirs.parameters(), momentum=0.9, nesterov=True, weight_decay=decay)
    )
    optimizer = (AdamW if kind == "adamw" else Sgd)(list(ours.parameters()), decay)
    for step, rate in enumerate(RATES * 3):
        x = torch.randn(6, 5)
        for module in (ours, theirs):
            module.zero_grad(set_to_none=True)
            module[: 3 if step % 2 else 4](x).square().sum().backward()  # the last layer has a gradient now and then
        optimizer.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
