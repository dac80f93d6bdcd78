"""The model that these tests attack: smaller than the one of the other folders, since they do so some hundred times."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crushproof.targets.data.data import Data
from crushproof.training.loop import Training, train


def small_cnn() -> nn.Module:
    """3,730 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


@pytest.fixture(scope="session")
def dense(digits: Data) -> nn.Module:
    """About 95 % right on records it has not seen."""
    assert digits.members is not None
    return train(small_cnn(), digits.members, Training(epochs=10, learning_rate=5e-3), seed=0)
