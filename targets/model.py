"""What is attacked: anything that answers inputs with logits, and counts how often it was asked."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

BATCH = 512  # records per forward pass; fixed, so that a result never depends on who asked for how many at once


class Target(Protocol):
    """A deployed model, or a torch module standing in for one."""

    queries: int  # records answered so far

    def logits(self, x: Tensor) -> Tensor:
        """float32 [n, classes] on x's device, in evaluation mode, for x float32 [n, *shape]; counts n queries."""
        ...


class TorchTarget:
    """A torch module as a target; it is put into evaluation mode and asked without gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval()
        self.queries = 0

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        parameter = next(self.module.parameters(), None)
        device = x.device if parameter is None else parameter.device
        parts = [self.module(batch.to(device)).float().to(x.device) for batch in x.split(BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, 0, device=x.device)


def accuracy(target: Target, x: Tensor, y: Tensor) -> float:
    """The share of records, in [0, 1], whose largest logit is the label's."""
    return float((target.logits(x).argmax(1) == y).float().mean())


def resolve_device(device: str) -> torch.device:
    """The device a setting means: "auto" is CUDA where there is one, else the CPU; others are torch's words."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
