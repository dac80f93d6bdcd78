"""An MLP for the one-hot table of UCI Adult, and how it is trained."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build(columns: int) -> nn.Module:
    """x float32 [n, columns] -> logits [n, 2]."""
    return nn.Sequential(nn.Linear(columns, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))


def train(module: nn.Module, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(10):
        for batch in torch.randperm(len(y), generator=order).split(128):
            optimizer.zero_grad()
            F.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    return module
