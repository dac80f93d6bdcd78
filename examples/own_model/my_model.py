"""A model and a training function of one's own: all crushproof asks for is these two signatures."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build(hidden: int = 32) -> nn.Module:
    """An untrained model. crushproof calls it for the dense model and for every shadow model."""
    return nn.Sequential(nn.Linear(30, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def train(module: nn.Module, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """Trains `module` as the shipped model was trained; crushproof repeats it on known halves of the data."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(15):
        for batch in torch.randperm(len(y), generator=order).split(32):
            optimizer.zero_grad()
            F.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    return module
