"""A perceptron, and the records it was trained on."""

from __future__ import annotations

import pytest
from torch import nn

from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Records
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp


@pytest.fixture(scope="session")
def members(digits: Data) -> Records:
    assert digits.members is not None
    return digits.members


@pytest.fixture(scope="session")
def mlp(members: Records) -> nn.Module:
    fresh = Architecture("mlp", lambda: Mlp(64, 10, (32, 24))).fresh(0)
    return train(fresh, members, Training(epochs=5), seed=0).requires_grad_(False)
