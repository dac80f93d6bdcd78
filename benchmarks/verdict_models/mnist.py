"""A CNN with batch norm for MNIST, and how it is trained."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build() -> nn.Module:
    """x float32 [n, 1, 28, 28] -> logits [n, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 116),
        nn.ReLU(),
        nn.Linear(116, 10),
    )


def train(module: nn.Module, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for _ in range(3):
        for batch in torch.randperm(len(y), generator=order).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    return module
