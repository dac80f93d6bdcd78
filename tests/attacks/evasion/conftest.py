"""The model that these tests attack: smaller than the one of the other folders, since they do so some hundred times."""

from __future__ import annotations

import pytest
from evasion_cases import small_cnn
from torch import nn

from crushproof.targets.data.data import Data
from crushproof.training.loop import Training, train


@pytest.fixture(scope="session")
def dense(digits: Data) -> nn.Module:
    """About 95 % right on records it has not seen."""
    assert digits.members is not None
    return train(small_cnn(), digits.members, Training(epochs=10, learning_rate=5e-3), seed=0)
